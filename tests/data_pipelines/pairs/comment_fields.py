"""Bytes are decoded with surrogateescape, so broken UTF-8 travels on as lone surrogates in the text."""

POLICY = "reject"
KWARGS = {}
CULPRIT = "surrogateescape"


def sample():
    return [
        b"4\tgood value",
        "5\tsehr sch\u00f6n".encode(),
        b"1\tbroke after a week",
        b"3\tfine",
    ]


def split_line(line):
    rating, _, comment = line.partition("\t")
    if rating.strip() not in {"1", "2", "3", "4", "5"}:
        raise ValueError(f"bad rating {rating!r}")
    return int(rating), comment.strip()


def read(raw):
    if not isinstance(raw, bytes):
        raise TypeError("expected bytes")
    return split_line(raw.decode("utf-8", "surrogateescape"))


def read_strict(raw):
    if not isinstance(raw, bytes):
        raise TypeError("expected bytes")
    return split_line(raw.decode("utf-8", "strict"))


def build(fixed: bool):
    reader = read_strict if fixed else read

    def pipeline(lines):
        ratings, comments = [], []
        for raw in lines:
            rating, comment = reader(raw)
            ratings.append(rating)
            comments.append(comment)
        return {"rating": ratings, "comment": comments}

    return pipeline
