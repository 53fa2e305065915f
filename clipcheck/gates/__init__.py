"""Judge outputs: numpy arrays only, without torch."""
