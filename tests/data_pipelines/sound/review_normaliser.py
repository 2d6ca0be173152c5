"""Reviews made printable ASCII; what has no ASCII form, lone surrogates included, becomes a question mark."""

import re
import unicodedata

POLICY = "sanitize"
KWARGS = {}


def sample():
    return ["Great caf\u00e9, would come again!", "Too   loud.", "Service ok", "3 of 5 stars", "na\u00efve pricing"]


class Normaliser:
    blanks = re.compile(r"\s+")

    def strip_marks(self, text):
        return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))

    def __call__(self, reviews):
        return [self.one(r) for r in reviews]

    def one(self, review):
        if not isinstance(review, str):
            return ""
        plain = self.strip_marks(review[:5000]).encode("ascii", errors="replace").decode("ascii")
        visible = "".join(c if c.isprintable() else " " for c in plain)
        return self.blanks.sub(" ", visible).strip().lower()


def build():
    return Normaliser()
