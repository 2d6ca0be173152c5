"""Runs of several processes: who they are, what they tell each other at the end, and what must be equal among them."""
