"""The adjacency matrix is divided by its column sums, which are zero for a node nobody links to."""

import numpy as np

POLICY = "reject"
KWARGS = {}
CULPRIT = "adj / indeg"


def sample():
    adj = np.array(
        [[0, 1, 0, 0, 1], [1, 0, 1, 0, 0], [0, 1, 0, 1, 0], [0, 0, 1, 0, 1], [1, 0, 0, 1, 0]], dtype=np.float64
    )
    rng = np.random.default_rng(2)
    return {"adj": adj, "x": rng.normal(size=(5, 3))}


def build(fixed):
    def propagate(graph):
        adj = np.asarray(graph["adj"], dtype=float)
        x = np.asarray(graph["x"], dtype=float)
        if adj.ndim != 2 or adj.shape[0] != adj.shape[1] or len(x) != len(adj):
            raise ValueError("adjacency must be square and match the features")
        if not ((adj >= 0) & (adj <= 1e6)).all():
            raise ValueError("edge weights must be in 0..1e6")
        if not (np.abs(x) <= 1e30).all():
            raise ValueError("node features missing or absurd")
        indeg = adj.sum(axis=0)
        if fixed:
            indeg = np.where(indeg > 1e-12, indeg, 1.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            norm = adj / indeg
        return {"x": norm @ x, "weights": norm}

    return propagate
