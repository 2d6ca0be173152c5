"""Hashed bag of words as a stateless function that returns a sparse matrix."""

from sklearn.feature_extraction.text import HashingVectorizer

POLICY = "sanitize"
KWARGS = {}

VECTORIZER = HashingVectorizer(n_features=64, alternate_sign=True)


def sample():
    return ["alpha beta", "gamma", "delta alpha", "beta beta epsilon"]


def readable(text):
    if not isinstance(text, str):
        return ""
    return text.encode("utf-8", "replace").decode("utf-8")


def vectorise(texts):
    if len(texts) == 0:
        raise ValueError("no texts")
    return VECTORIZER.transform([readable(t) for t in texts])


def build():
    return vectorise
