"""Suites: a training setup, the loop that drives it, and its expansion into test items."""
