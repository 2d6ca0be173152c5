"""Age groups with torch.bucketize; the output is integer."""

import torch

POLICY = "reject"
KWARGS = {}

EDGES = torch.tensor([12.0, 18.0, 30.0, 45.0, 65.0])


def sample():
    return {
        "age": torch.tensor([3.0, 17.5, 29.0, 44.0, 70.0]),
        "member": torch.tensor([True, False, True, True, False]),
    }


def groups(batch):
    age = torch.as_tensor(batch["age"], dtype=torch.float32)
    if not torch.isfinite(age).all():
        raise ValueError("age must be finite")
    return {"group": torch.bucketize(age, EDGES), "member": batch["member"]}


def build():
    return groups
