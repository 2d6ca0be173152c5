"""Symmetric degree normalisation with self loops, so no node has degree zero."""

import torch

POLICY = "reject"
KWARGS = {}


def sample():
    g = torch.Generator().manual_seed(55)
    edges = torch.tensor([[0, 1, 2, 3, 1], [1, 2, 3, 4, 4]])
    return {"x": torch.randn(5, 3, generator=g), "edge_index": edges}


def build():
    def propagate(graph):
        x, edges = graph["x"], graph["edge_index"]
        if x.ndim != 2 or not torch.isfinite(x).all() or (x.abs() > 1e30).any():
            raise ValueError("node features unusable")
        if edges.is_floating_point() or edges.ndim != 2 or edges.shape[0] != 2:
            raise TypeError("edge_index must be a 2 x E integer tensor")
        n = x.shape[0]
        if edges.numel() and (edges.min() < 0 or edges.max() >= n):
            raise ValueError("edge points to a node that does not exist")
        adj = torch.eye(n, dtype=x.dtype)
        adj[edges[0], edges[1]] = 1.0
        adj[edges[1], edges[0]] = 1.0
        d = adj.sum(dim=1).rsqrt()
        return d[:, None] * adj * d[None, :] @ x

    return propagate
