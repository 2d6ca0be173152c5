"""Missing texts are turned into the word 'none' or 'nan' by str() and tokenised."""

import pandas as pd

POLICY = "reject"
KWARGS = {}
CULPRIT = "str(text)"


def sample():
    return pd.DataFrame(
        {"review": ["good value", "arrived late", "would buy again", "too small"], "stars": [5, 2, 4, 3]}
    )


def build(fixed):
    def tokens(df):
        stars = df["stars"].to_numpy(dtype=float)
        if not ((stars >= 0) & (stars <= 5)).all():
            raise ValueError("stars must be 0..5")
        rows = []
        for text in df["review"].tolist():
            if fixed and not isinstance(text, str):
                raise TypeError("review is missing")
            text = str(text)
            text.encode("utf-8")
            rows.append(text.lower().split())
        return {"tokens": rows, "stars": stars}

    return tokens
