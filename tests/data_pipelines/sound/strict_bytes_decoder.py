"""Decodes UTF-8 records strictly and normalises them to NFC."""

import unicodedata

POLICY = "reject"
KWARGS = {}


def sample():
    return [b"plain", "Stra\u00dfe 9".encode(), "e\u0301cole".encode(), b"tab\tseparated", b"42"]


class Utf8Reader:
    def __call__(self, records):
        return [self.read(r) for r in records]

    @staticmethod
    def read(record):
        text = bytes(memoryview(record)).decode("utf-8")
        return unicodedata.normalize("NFC", text).strip()


def build():
    return Utf8Reader()
