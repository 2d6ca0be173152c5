"""TF-IDF of short reviews after a check of the strings."""

from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import Pipeline

POLICY = "reject"
KWARGS = {}


def sample():
    return ["great phone, great price", "battery died", "screen is fine", "price too high", "love it"]


class ProperTexts(TransformerMixin, BaseEstimator):
    def fit(self, texts, y=None):
        self.n_texts_ = len(texts)
        return self

    def transform(self, texts):
        if len(texts) == 0:
            raise ValueError("no texts")
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"text {i} is not a string")
            text.encode("utf-8")
        return list(texts)


def build():
    return Pipeline(
        [
            ("texts", ProperTexts()),
            ("tfidf", TfidfVectorizer(sublinear_tf=True)),
        ]
    )
