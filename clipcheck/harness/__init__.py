"""Run candidates and references, and judge them."""
