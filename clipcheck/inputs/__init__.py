"""Inputs of models: token ids, pixels, batches of both."""
