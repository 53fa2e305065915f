"""Judging outputs. Over numpy arrays alone: nothing in here imports torch."""
