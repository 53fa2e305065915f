"""Open checkpoints by name or path: format, architecture and tensors."""
