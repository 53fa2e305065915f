"""Feed altered inputs to every parser; only our own errors may be raised.

``python -m tests.fuzz --minutes 60`` searches; ``tests/fuzz/test_fuzz.py`` does a little of it.
"""
