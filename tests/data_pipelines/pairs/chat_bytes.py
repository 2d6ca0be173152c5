"""Encoding that ignores errors silently drops lone surrogates that broken transcripts contain."""

import torch

POLICY = "reject"
KWARGS = {}
CULPRIT = 'errors="ignore"'

LENGTH = 24
PAD = 256


def sample():
    return ["hi, my order is late", "which order number?", "it is 4711", "thanks, one moment please", "ok"]


class ByteCoder:
    def to_bytes(self, message):
        return message.encode("utf-8", errors="ignore")

    def row(self, message):
        if not isinstance(message, str):
            raise TypeError("a message must be text")
        codes = list(self.to_bytes(message)[:LENGTH])
        return codes + [PAD] * (LENGTH - len(codes))

    def __call__(self, transcript):
        return torch.tensor([self.row(m) for m in transcript], dtype=torch.int64).reshape(-1, LENGTH)


class StrictByteCoder(ByteCoder):
    def to_bytes(self, message):
        return message.encode("utf-8")


def build(fixed):
    return StrictByteCoder() if fixed else ByteCoder()
