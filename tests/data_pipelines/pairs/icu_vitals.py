"""The completeness check looks at the heart rate only, so gaps in the other vital signs reach the model."""

import numpy as np
import pandas as pd

POLICY = "reject"
KWARGS = {}
CULPRIT = "values[:, 0]"


def sample():
    return pd.DataFrame(
        {
            "heart_rate": [72.0, 88.0, 95.0, 64.0, 110.0],
            "spo2": [98.0, 96.0, 93.0, 99.0, 91.0],
            "temperature": [36.6, 37.1, 38.4, 36.9, 39.0],
        }
    )


class VitalsEncoder:
    centre = np.array([80.0, 96.0, 37.0])
    spread = np.array([15.0, 3.0, 0.7])

    def _numbers(self, frame):
        return frame[["heart_rate", "spo2", "temperature"]].to_numpy(dtype=np.float64)

    def _require_complete(self, values):
        if not np.isfinite(values[:, 0]).all():
            raise ValueError("incomplete vital signs")

    def encode(self, frame):
        values = self._numbers(frame)
        self._require_complete(values)
        return (values - self.centre) / self.spread

    __call__ = encode


class StrictVitalsEncoder(VitalsEncoder):
    def _require_complete(self, values):
        if not np.isfinite(values).all():
            raise ValueError("incomplete vital signs")


def build(fixed):
    return StrictVitalsEncoder() if fixed else VitalsEncoder()
