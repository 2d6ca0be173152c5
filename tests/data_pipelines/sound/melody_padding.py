"""Melodies of different length padded to (features, mask); padding is minus one, an empty melody is all padding."""

import numpy as np

POLICY = "reject"
KWARGS = {}
STEPS = 6


def sample():
    return [[60.0, 62.0, 64.0], [67.0, 65.0], [72.0, 71.0, 69.0, 67.0], [55.0, 57.0, 59.0, 60.0, 62.0]]


def check(melody):
    for pitch in melody:
        if not 0 <= pitch <= 127:
            raise ValueError(f"no such pitch: {pitch}")


def build():
    def pad(melodies):
        features = np.full((len(melodies), STEPS), -1.0)
        mask = np.zeros((len(melodies), STEPS), dtype=bool)
        for row, melody in enumerate(melodies):
            check(melody)
            head = melody[:STEPS]
            features[row, : len(head)] = np.array(head, dtype=np.float64) / 127.0
            mask[row, : len(head)] = True
        return features, mask

    return pad
