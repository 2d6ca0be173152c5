"""Undecodable bytes are dropped silently by errors="ignore"."""

import re

POLICY = "reject"
KWARGS = {}
CULPRIT = 'errors="ignore"'


def sample():
    return [b"GET /index.html", "caf\u00e9 cr\u00e8me".encode(), b"POST /login", "na\u00efve".encode()]


class ByteTokenizer:
    pattern = re.compile(r"\w+|[^\w\s]")

    def decode(self, raw):
        return raw.decode("utf-8", errors="ignore")

    def __call__(self, lines):
        out = []
        for i, raw in enumerate(lines):
            if not isinstance(raw, (bytes, bytearray)):
                raise TypeError(f"line {i}: expected bytes")
            out.append(self.pattern.findall(self.decode(raw)))
        return out


class StrictByteTokenizer(ByteTokenizer):
    def decode(self, raw):
        return raw.decode("utf-8")


def build(fixed: bool):
    return StrictByteTokenizer() if fixed else ByteTokenizer()
