"""Gateway payloads decoded with replacement characters and turned into code point features."""

import numpy as np

POLICY = "sanitize"
KWARGS = {}
WIDTH = 16


def sample():
    return [b"temp=21.5", b"hum=40", "ort=M\u00fcnchen".encode(), b"batt=3.7V", b"boot ok"]


def decode(payload):
    if not isinstance(payload, (bytes, bytearray)):
        payload = b""
    return bytes(payload).decode("utf-8", errors="replace")


def code_points(text):
    codes = [min(ord(c), 0xFFFF) for c in text[:WIDTH]]
    return codes + [0] * (WIDTH - len(codes))


def build():
    return lambda payloads: np.array([code_points(decode(p)) for p in payloads], dtype=np.int64).reshape(-1, WIDTH)
