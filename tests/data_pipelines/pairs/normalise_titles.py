"""Unicode normalisation keeps lone surrogates, so the cleaned title still cannot be encoded."""

import re
import unicodedata

POLICY = "sanitize"
KWARGS = {}
CULPRIT = 'unicodedata.normalize("NFKC", title)'

SPACE = re.compile(r"\s+")


def sample():
    return ["The Third  Man", "Am\u00e9lie", "\uff22lade Runner", "Das Boot ", "Ran"]


def text(value):
    return value if isinstance(value, str) else ""


def clean(title):
    title = unicodedata.normalize("NFKC", title)
    return SPACE.sub(" ", title).strip().casefold()


def clean_valid(title):
    title = unicodedata.normalize("NFKC", title.encode("utf-8", "replace").decode("utf-8"))
    return SPACE.sub(" ", title).strip().casefold()


def build(fixed: bool):
    step = clean_valid if fixed else clean
    return lambda titles: [step(text(t)) for t in titles]
