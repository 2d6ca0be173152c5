"""One-hot encoding with an extra column for unknown shops, missing shops are refused."""

import numpy as np
import pandas as pd

POLICY = "reject"
KWARGS = {}
SHOPS = ("berlin", "hamburg", "online")


def sample():
    return pd.DataFrame(
        {"shop": ["online", "berlin", "hamburg", "online", "berlin"], "basket": [34.5, 12.0, 88.9, 150.0, 7.2]}
    )


def shop_index(name):
    if not isinstance(name, str):
        raise TypeError("shop is missing")
    name.encode("utf-8")
    return SHOPS.index(name) if name in SHOPS else len(SHOPS)


def encode(orders):
    basket = orders["basket"].to_numpy(dtype=np.float64)
    if not np.isfinite(basket).all():
        raise ValueError("basket is not finite")
    index = np.fromiter((shop_index(s) for s in orders["shop"]), dtype=np.int64, count=len(orders))
    return np.hstack([np.eye(len(SHOPS) + 1)[index], np.arcsinh(basket)[:, None]])


def build():
    return encode
