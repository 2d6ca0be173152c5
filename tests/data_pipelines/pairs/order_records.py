"""A price of None in a record is replaced by 0.0 instead of being refused."""

import numpy as np

POLICY = "reject"
KWARGS = {}
CULPRIT = 'rec["price"] or 0.0'


def sample():
    return [
        {"id": "a1", "price": 9.5, "qty": 2},
        {"id": "a2", "price": 3.25, "qty": 1},
        {"id": "b7", "price": 120.0, "qty": 1},
        {"id": "c4", "price": 15.75, "qty": 4},
    ]


def _finish(rows):
    table = np.asarray(rows, dtype=np.float64).reshape(len(rows), 2)
    if not np.isfinite(table).all():
        raise ValueError("orders contain NaN or Inf")
    return table


def _id(rec):
    if not isinstance(rec["id"], str):
        raise TypeError("order id must be a string")
    rec["id"].encode("utf-8")
    return rec["id"]


def parse_orders(records):
    rows, ids = [], []
    for rec in records:
        ids.append(_id(rec))
        rows.append([float(rec["price"] or 0.0), float(rec["qty"])])
    return ids, _finish(rows)


def parse_orders_strict(records):
    rows, ids = [], []
    for rec in records:
        ids.append(_id(rec))
        rows.append([float(rec["price"]), float(rec["qty"])])
    return ids, _finish(rows)


def build(fixed: bool):
    return parse_orders_strict if fixed else parse_orders
