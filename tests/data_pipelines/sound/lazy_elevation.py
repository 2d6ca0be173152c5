"""Elevation of grid cells from a table that is built at the first call and never changed by data."""

import numpy as np

POLICY = "reject"
KWARGS = {}


def sample():
    return {
        "row": np.array([3, 0, 7, 5, 2], dtype=np.int64),
        "col": np.array([1, 4, 6, 0, 7], dtype=np.int64),
        "offset": np.array([0.5, -1.2, 3.3, 0.0, 2.8]),
    }


class Elevation:
    size = 8
    _table = None

    @property
    def table(self):
        if self._table is None:
            r, c = np.mgrid[: self.size, : self.size]
            self._table = 120.0 + 35.0 * np.sin(r / 2.0) + 20.0 * np.cos(c / 3.0)
        return self._table

    def axis(self, name, values):
        values = np.asarray(values)
        if values.dtype.kind not in "iu":
            raise TypeError(f"{name}: whole numbers expected")
        if ((values < 0) | (values >= self.size)).any():
            raise ValueError(f"{name}: outside the grid")
        return values

    def __call__(self, points):
        offset = np.asarray(points["offset"], dtype=np.float64)
        if not (np.abs(offset) < 9000.0).all():
            raise ValueError("offset: finite and below 9000 m expected")
        if not len(points["row"]) == len(points["col"]) == len(offset):
            raise ValueError("row, col and offset differ in length")
        base = self.table[self.axis("row", points["row"]), self.axis("col", points["col"])]
        return (base + offset) / 1000.0


def build():
    return Elevation()
