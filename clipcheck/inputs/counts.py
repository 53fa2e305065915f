"""Numbers of images and prompts in the edge cases; it imports nothing."""

from __future__ import annotations

SIZES = ((2, 1), (1, 2), (5, 4), (7, 8), (3, 3))
"""Images and prompts of the first batches: from one to eight; more images than prompts, fewer, and
as many. Different sizes, because some programs are wrong at a single size."""

EDGE_CASES = sum(images for images, _ in SIZES)
"""Number of images among the edge cases."""
