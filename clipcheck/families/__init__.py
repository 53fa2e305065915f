"""What a checkpoint is a model of."""
