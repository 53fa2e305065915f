"""Load checkpoints as models on a device."""
