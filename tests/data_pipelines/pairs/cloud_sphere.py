"""A cloud of one point (or of equal points) has radius 0 after centring, and scaling to the unit sphere gives NaN."""

import numpy as np

POLICY = "reject"
KWARGS = {}
CULPRIT = "centred / radius"


def sample():
    rng = np.random.default_rng(21)
    return rng.uniform(-3, 4, size=(10, 3))


class UnitSphere:
    def _centred(self, points):
        points = np.asarray(points, dtype=np.float32)
        if points.ndim != 2 or len(points) == 0:
            raise ValueError("expected a non-empty (n, 3) point cloud")
        if not np.isfinite(points).all():
            raise ValueError("point cloud has non-finite coordinates")
        points = points.astype(np.float64)
        return points - points.mean(axis=0)

    def __call__(self, points):
        centred = self._centred(points)
        radius = np.sqrt((centred**2).sum(axis=1)).max()
        return (centred / radius).astype(np.float32)


class UnitSphereDegenerate(UnitSphere):
    def __call__(self, points):
        centred = self._centred(points)
        radius = np.sqrt((centred**2).sum(axis=1)).max()
        return (centred / max(radius, 1e-9)).astype(np.float32)


def build(fixed: bool):
    return UnitSphereDegenerate() if fixed else UnitSphere()
