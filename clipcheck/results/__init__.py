"""The result of a check, as objects and as a JSON document."""
