"""What models are fed with: token ids, pixels, batches of both."""
