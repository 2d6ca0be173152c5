"""Baselines: what a training measured once, recorded in files under version control, and compared with later ones."""
