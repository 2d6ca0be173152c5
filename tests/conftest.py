"""Shared by all tests: a real pytest in a folder."""

pytest_plugins = ["pytester"]
