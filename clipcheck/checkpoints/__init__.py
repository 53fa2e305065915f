"""From a name or a path to a checkpoint: its format, its architecture, its tensors."""
