"""Measure which planted faults the gates detect."""
