"""The programs are watched as they are, or as tests that carry the marker."""

import os

import pytest


def pytest_itemcollected(item):
    if os.environ.get("GALLERY_WAY") == "marker":
        item.add_marker(pytest.mark.nanstab)
