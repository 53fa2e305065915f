"""The pytest plugin: options, fixtures, and scheduling of the tests that judge checkpoints."""
