"""Compare the modules of an archive one by one with the eager model and its float64 twin."""
