"""The residue counts are divided by the sequence length, which is zero for an empty sequence."""

from collections import Counter

import numpy as np

POLICY = "reject"
KWARGS = {}
CULPRIT = "counts / len(sequence)"

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"


def sample():
    return ["MKTAYIAKQR", "GAVLIPFMW", "STNQCYDEKRH", "MGDVEKGKKIFIMK", "AAGHHVLLK"]


def tally(sequence):
    if not isinstance(sequence, str):
        raise TypeError("sequence must be text")
    sequence.encode("utf-8")
    seen = Counter(sequence.upper())
    counts = np.array([seen[r] for r in RESIDUES], dtype=np.float64)
    return counts


def share_v1(sequence):
    counts = tally(sequence)
    return counts / len(sequence)


def share_v2(sequence):
    counts = tally(sequence)
    return counts / max(len(sequence), 1)


def build(fixed):
    share = share_v2 if fixed else share_v1
    return lambda batch: np.array([share(s) for s in batch]).reshape(-1, len(RESIDUES))
