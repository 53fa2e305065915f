"""The ways to run a checkpoint, one file each, under one protocol."""
