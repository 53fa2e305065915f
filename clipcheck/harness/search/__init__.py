"""Draw random inputs with Hypothesis, run them in batches, and shrink one that fails."""
