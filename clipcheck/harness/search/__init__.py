"""Random inputs: drawn with Hypothesis, run in batches, and shrunk where one fails."""
