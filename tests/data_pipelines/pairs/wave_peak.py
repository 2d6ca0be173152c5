"""Peak normalisation divides by the largest amplitude, which is 0 for a silent clip."""

import torch

POLICY = "reject"
KWARGS = {}
CULPRIT = "wave / peak"


def sample():
    t = torch.linspace(0, 1, 32)
    return torch.stack([torch.sin(6.28 * f * t) * a for f, a in [(2, 0.3), (3, 0.8), (5, 0.5), (7, 0.1)]])


def check_clip(wave):
    if not torch.is_floating_point(wave):
        raise TypeError("expected a float waveform")
    if wave.dim() != 2 or wave.shape[1] == 0:
        raise ValueError("expected (clips, samples) with at least one sample")
    if not torch.isfinite(wave).all():
        raise ValueError("waveform holds NaN or Inf")


def peak_normalise(wave):
    check_clip(wave)
    peak = wave.abs().amax(dim=1, keepdim=True)
    return wave / peak


def peak_normalise_safe(wave):
    check_clip(wave)
    peak = wave.abs().amax(dim=1, keepdim=True)
    return torch.where(peak > 0, wave / peak.clamp_min(1e-12), wave)


def build(fixed: bool):
    return peak_normalise_safe if fixed else peak_normalise
