"""Log lines are decoded with surrogateescape, so undecodable bytes survive as lone surrogates."""

POLICY = "reject"
KWARGS = {}
CULPRIT = '"surrogateescape"'


def sample():
    return [b"GET /index.html 200", "POST /caf\u00e9 201".encode(), b"GET /a?b=1 404", b"HEAD / 200"]


def build(fixed):
    errors = "strict"
    if not fixed:
        errors = "surrogateescape"

    def decode(lines):
        out = []
        for raw in lines:
            if not isinstance(raw, bytes):
                raise TypeError(f"expected bytes, got {type(raw).__name__}")
            out.append(raw.decode("utf-8", errors).lower())
        return out

    return decode
