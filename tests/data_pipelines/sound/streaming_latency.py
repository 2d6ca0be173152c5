"""Request latencies against thresholds; each batch is checked before the counters are touched."""

import numpy as np

POLICY = "reject"
KWARGS = {}


def sample():
    return np.array([12.5, 48.0, 7.3, 150.0, 33.3, 21.8, 95.1])


class LatencyEncoder:
    edges = np.array([10.0, 25.0, 50.0, 100.0])

    def __init__(self):
        self.batches = 0
        self.seen = 0
        self.total = 0.0

    def __call__(self, latency_ms):
        latency = np.asarray(latency_ms, dtype=np.float64)
        if not (np.isfinite(latency).all() and (latency >= 0).all()):
            raise ValueError("latency must be finite and not negative")
        self.batches += 1
        self.seen += latency.size
        self.total += float(np.minimum(latency, 1e6).sum())
        level = np.searchsorted(self.edges, latency, side="right") / len(self.edges)
        return np.stack([level, np.log1p(latency)], axis=1)


def build():
    return LatencyEncoder()
