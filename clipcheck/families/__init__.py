"""Families of models that a checkpoint can belong to."""
