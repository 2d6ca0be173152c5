"""Watching a training loop: sinks and measurements on torch's hooks, ending in a `Run`."""
