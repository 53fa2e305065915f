"""Judge many checkpoints, on one machine or several, and lose nothing when something ends early."""
