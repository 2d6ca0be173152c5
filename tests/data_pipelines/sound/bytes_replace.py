"""Decode log lines, broken bytes become the replacement character."""

POLICY = "sanitize"
KWARGS = {}


def sample():
    return [b"user=ann action=login", b"user=bob action=logout", "user=zo\u00eb action=view".encode()]


def decode(raw):
    if not isinstance(raw, (bytes, bytearray)):
        return ""
    return bytes(raw).decode("utf-8", errors="replace").replace("\x00", " ").strip()


def build():
    return lambda lines: [decode(raw) for raw in lines]
