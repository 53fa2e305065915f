"""Run the modules of an archive one by one, each beside its eager and its float64 twin."""
