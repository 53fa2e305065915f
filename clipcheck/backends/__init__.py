"""The backends: one file for each way to run a checkpoint."""
