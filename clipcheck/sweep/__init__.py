"""Judge many checkpoints, on one machine or several, in runs that can be resumed."""
