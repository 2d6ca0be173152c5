"""Document frequencies are counted while the batch is still being checked, so refused batches shift later weights."""

import math

import numpy as np

POLICY = "reject"
KWARGS = {}
CULPRIT = "self.count(doc)  # early"


def sample():
    return ["the cat sat", "the dog ran", "a cat and a dog", "birds sing"]


class OnlineIdf:
    def __init__(self, two_pass):
        self.two_pass = two_pass
        self.docs = 0
        self.df = {}

    def check(self, doc):
        if not isinstance(doc, str):
            raise TypeError("document is not text")
        doc.encode("utf-8")

    def count(self, doc):
        self.docs += 1
        for word in set(str(doc).split()):
            self.df[word] = self.df.get(word, 0) + 1

    def __call__(self, docs):
        if self.two_pass:
            for doc in docs:
                self.check(doc)
            for doc in docs:
                self.count(doc)
        else:
            for doc in docs:
                self.count(doc)  # early
                self.check(doc)
        weights = []
        for doc in docs:
            idf = [math.log((1 + self.docs) / (1 + self.df[w])) + 1.0 for w in doc.split()]
            weights.append(sum(idf) / len(idf) if idf else 0.0)
        return np.array(weights)


def build(fixed):
    return OnlineIdf(two_pass=fixed)
