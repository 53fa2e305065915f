"""Feeds altered inputs to everything that parses, and lets nothing but our own errors out.

``python -m tests.fuzz --minutes 60`` searches; ``tests/fuzz/test_fuzz.py`` does a little of it.
"""
