"""Measure what the gates see: known faults, planted."""
