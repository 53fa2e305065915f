"""Options, sharing and scheduling of a run of pytest that judges checkpoints."""
