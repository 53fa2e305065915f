"""From a checkpoint to a model on a device."""
