"""Corrupted copies of a sample: what a data pipeline has to refuse or to repair."""
