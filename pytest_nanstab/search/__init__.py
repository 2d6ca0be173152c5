"""Guided search for a legal batch that breaks a training."""
