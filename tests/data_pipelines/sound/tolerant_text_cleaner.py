"""Cleans scraped text: missing entries become empty, invalid code points become question marks."""

import re

POLICY = "sanitize"
KWARGS = {}


def sample():
    return ["  Hello   World ", "Caf\u00e9 cr\u00e8me", "line\nbreak", "100 % cotton", "ok"]


def build():
    spaces = re.compile(r"\s+")

    def clean(texts):
        out = []
        for text in texts:
            if not isinstance(text, str):
                text = ""
            text = text.encode("utf-8", "replace").decode("utf-8")
            out.append(spaces.sub(" ", text).strip().lower())
        return out

    return clean
