"""`assert_init_scale`: wrong, forgotten and broken weights fail; every healthy initialisation passes."""

from __future__ import annotations

import copy
import math
import re

import pytest
import torch
from torch import nn
from torch.nn import init
from torch.nn.utils import parametrizations

from pytest_nanstab import NonFiniteError, StabilityError, assert_init_scale
from pytest_nanstab.checks import _spread
from pytest_nanstab.checks._spread import Measured, fits, measure, orthogonal_gain, std_interval
from pytest_nanstab.checks._weights import Expected
from pytest_nanstab.checks.init_scale import init_scale_rows


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def failure(model, scheme="auto", **kwargs):
    with pytest.raises(StabilityError) as caught:
        assert_init_scale(model, scheme, **kwargs)
    return caught.value


def apply(function, model, kinds=(nn.Linear,)):
    for module in model.modules():
        if isinstance(module, kinds):
            function(module.weight)
    return model


def mlp(depth=6):
    widths = (64, 160)
    return nn.Sequential(*[nn.Linear(widths[i % 2], widths[1 - i % 2]) for i in range(depth)])


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear1 = nn.Linear(64, 128)
        self.linear2 = nn.Linear(128, 64)
        self.linear3 = nn.Linear(64, 64)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = Encoder()
        self.head = nn.Linear(64, 10)


INITIALISERS = {
    "xavier_uniform": init.xavier_uniform_,
    "xavier_normal": init.xavier_normal_,
    "kaiming_uniform": init.kaiming_uniform_,
    "kaiming_normal": init.kaiming_normal_,
    "kaiming_normal(fan_out)": lambda w: init.kaiming_normal_(w, mode="fan_out"),
    "kaiming_uniform(mode='fan_out', nonlinearity='relu')": lambda w: init.kaiming_uniform_(
        w, mode="fan_out", nonlinearity="relu"
    ),
    "kaiming_uniform(a=2.2360679)": lambda w: init.kaiming_uniform_(w, a=math.sqrt(5)),
    "lecun_uniform": lambda w: init.kaiming_uniform_(w, nonlinearity="linear"),
    "lecun_normal": lambda w: init.kaiming_normal_(w, nonlinearity="linear"),
    "orthogonal": init.orthogonal_,
    "orthogonal(1.41421)": lambda w: init.orthogonal_(w, gain=math.sqrt(2)),
    "xavier_uniform(gain=2)": lambda w: init.xavier_uniform_(w, gain=2),
    "normal(0.02)": lambda w: init.normal_(w, std=0.02),
    "trunc_normal(0.02)": lambda w: init.trunc_normal_(w, std=0.02),
    "uniform(-0.1, 0.1)": lambda w: init.uniform_(w, -0.1, 0.1),
    "zeros": init.zeros_,
    "torch_default": lambda w: init.kaiming_uniform_(w, a=math.sqrt(5)),
}
LAYERS = {
    "Linear": lambda: nn.Linear(48, 160),
    "Conv1d": lambda: nn.Conv1d(24, 40, 3),
    "Conv2d": lambda: nn.Conv2d(8, 24, 3),
    "grouped": lambda: nn.Conv2d(32, 64, 3, groups=4),
    "Conv3d": lambda: nn.Conv3d(4, 24, 3),
    "ConvTranspose2d": lambda: nn.ConvTranspose2d(16, 40, 3),
    "Bilinear": lambda: nn.Bilinear(10, 20, 30),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("scheme", INITIALISERS)
def test_named_scheme_accepts_its_own_and_rejects_ten_times_that(scheme, layer):
    """Every initialiser of torch.nn.init passes under its name on every layer type; scaled up tenfold it does not."""
    model = nn.ModuleDict({"layer": LAYERS[layer]()})
    weight = model["layer"].weight
    with torch.no_grad():
        if scheme == "torch_default":
            model["layer"].reset_parameters()
        else:
            INITIALISERS[scheme](weight)
        assert_init_scale(model, scheme)
        weight.mul_(10).add_(0.5 if scheme == "zeros" else 0)
    assert failure(model, scheme).findings[0].kind == "init-scale"


DEFAULTS = {
    **LAYERS,
    "LSTM": lambda: nn.LSTM(20, 30, 2, bidirectional=True, proj_size=8),
    "GRU": lambda: nn.GRU(20, 30),
    "RNN": lambda: nn.RNN(20, 40),
    "LSTMCell": lambda: nn.LSTMCell(20, 30),
    "Embedding": lambda: nn.Embedding(100, 30, padding_idx=0),
    "EmbeddingBag": lambda: nn.EmbeddingBag(100, 30),
    "MultiheadAttention": lambda: nn.MultiheadAttention(32, 4),
    "attention with kdim": lambda: nn.MultiheadAttention(32, 4, kdim=20, vdim=24),
    "TransformerEncoder": lambda: nn.TransformerEncoderLayer(32, 4, 64),
    "depthwise": lambda: nn.Conv2d(32, 32, 3, groups=32),
    "weight_norm": lambda: parametrizations.weight_norm(nn.Linear(30, 40)),
}


@pytest.mark.parametrize("build", DEFAULTS.values(), ids=DEFAULTS)
def test_torch_default_is_recognised_and_never_a_fault(build):
    """What torch's own constructors give passes as torch_default and under auto, and fails when scaled threefold."""
    model = build()
    assert_init_scale(model, "torch_default")
    assert_init_scale(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    failure(model, "torch_default")


def test_five_percent_off_is_seen_in_a_large_layer_and_noise_is_not_in_a_small_one():
    """The interval knows the sample size: 1000 x 1000 at 1.05 fails, 4 x 4 never by noise."""
    large = nn.Linear(1000, 1000)
    init.xavier_uniform_(large.weight)
    assert_init_scale(large, "xavier_uniform")
    with torch.no_grad():
        large.weight.mul_(1.05)
    row = failure(large, "xavier_uniform").findings[0].evidence["table"][0]
    assert row["ratio"] == pytest.approx(1.05, rel=0.01)
    small = nn.Linear(4, 4)
    for _ in range(50):
        init.xavier_normal_(small.weight)
        assert_init_scale(small, "xavier_normal")


@pytest.mark.parametrize("count", [2, 9, 64, 300, 4096])
@pytest.mark.parametrize(("draw", "kurtosis"), [("uniform", 1.8), ("normal", 3.0)])
def test_false_alarm_rate(monkeypatch, draw, kurtosis, count):
    """Of 20000 correct weights, at a rate of 1 % per weight, at most 1 % (and a little noise) are accused."""
    monkeypatch.setattr(_spread, "FALSE_ALARMS", 0.01)
    monkeypatch.setattr(_spread, "TOLERANCE", 0.0)
    trials = 20_000 if count < 1000 else 2_000
    values = torch.rand(trials, count) * 2 - 1 if draw == "uniform" else torch.randn(trials, count)
    values *= math.sqrt(3) if draw == "uniform" else 1.0
    alpha = 0.01 / 2
    low, high = std_interval(count, kurtosis, alpha)
    std = values.std(1, correction=0)
    centred = values.mean(1).abs() <= math.sqrt(2 * math.log(2 / alpha) / count)
    alarms = trials - int(((std >= low) & (std <= high) & centred).sum())
    assert alarms <= 0.01 * trials + 3 * math.sqrt(0.01 * trials)
    expected = Expected(1.0, kurtosis)
    some = [fits(measure(row), expected, tests=1) for row in values[:20]]
    assert some == [bool(low <= s <= high and c) for s, c in zip(std[:20].tolist(), centred[:20], strict=True)]


def test_interval_narrows_with_the_sample():
    """At a million values the interval is within half a percent of 1, and never excludes 1."""
    for count in (2, 10, 199, 200, 10**4, 10**6):
        low, high = std_interval(count, 3.0, 1e-6)
        assert low < 1 < high
    assert low > 0.995
    assert high < 1.005


def test_message_table_cause_and_remedy():
    """The finding reads as the issue it is: how many, which first, what was measured, and the line to change."""
    model = apply(init.xavier_uniform_, Model())
    model.encoder.linear1.reset_parameters()
    model.head.reset_parameters()
    error = failure(model, "xavier_uniform")
    (finding,) = error.findings
    assert str(error).splitlines()[0] == "init scale: 2 of 4 weights are not xavier_uniform"
    assert (finding.kind, finding.phase, finding.module) == ("init-scale", "init", "encoder.linear1")
    assert finding.remedy == "init.xavier_uniform_(model.encoder.linear1.weight)"
    assert "encoder.linear1.weight kept torch's default initialisation" in finding.cause
    row = finding.evidence["table"][0]
    assert list(row) == ["layer", "shape", "scheme", "expect", "std", "ratio", "verdict"]
    assert (row["layer"], row["shape"], row["verdict"]) == ("encoder.linear1", "128x64", "default")
    assert row["expect"] == pytest.approx(math.sqrt(2 / 192), rel=5e-3)
    assert [item["verdict"] for item in finding.evidence["table"]] == ["default", "default", "ok", "ok"]


def test_source_is_the_line_that_builds_the_layer():
    """The finding points at the assignment in the user's class."""
    model = apply(init.xavier_uniform_, Model())
    model.encoder.linear2.reset_parameters()
    source = failure(model, "xavier_uniform").findings[0].source
    path, _, line = source.rpartition(":")
    with open(path, encoding="utf-8") as file:
        assert "self.linear2 = nn.Linear(128, 64)" in file.readlines()[int(line) - 1]


REMEDIES = {
    "xavier_uniform": "init.xavier_uniform_(model[3].weight)",
    "kaiming_normal": "init.kaiming_normal_(model[3].weight)",
    "lecun_normal": "init.kaiming_normal_(model[3].weight, nonlinearity='linear')",
    "orthogonal": "init.orthogonal_(model[3].weight)",
    "normal(0.02)": "init.normal_(model[3].weight, std=0.02)",
}


def test_forgotten_layer_is_found_by_itself():
    """auto: one layer that kept the default among layers that follow a scheme; none is forgotten when all follow."""
    for name, remedy in REMEDIES.items():
        model = apply(INITIALISERS[name], mlp())
        assert_init_scale(model)
        model[3].reset_parameters()
        (finding,) = failure(model).findings
        assert finding.message == "init scale: 3 kept torch's default"
        assert finding.evidence["others"] == f"5 of 6 weights of its kind follow {name}"
        assert finding.remedy == remedy


def test_minority_is_not_a_majority():
    """Below 60 %, or below three layers, following a scheme says nothing about the others."""
    model = mlp(6)
    for index in range(3):
        init.xavier_uniform_(model[index].weight)
    assert_init_scale(model)
    model = mlp(3)
    for index in range(2):
        init.xavier_uniform_(model[index].weight)
    assert_init_scale(model)


def test_other_types_are_not_forgotten():
    """Convolutions by kaiming beside a classifier at torch's default, as in the usual residual networks."""
    convolutions = [nn.Conv2d(8, 8, 3) for _ in range(5)]
    model = apply(init.kaiming_normal_, nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(8, 8)), (nn.Conv2d,))
    assert_init_scale(model)


def test_gpt2_scheme_is_one_scheme():
    """0.02 and, at the residual stream, 0.02 / sqrt(2 blocks) belong together; a forgotten layer still shows."""
    blocks = nn.ModuleList(nn.ModuleDict({"up": nn.Linear(64, 128), "down": nn.Linear(128, 64)}) for _ in range(4))
    for block in blocks:
        init.normal_(block["up"].weight, std=0.02)
        init.normal_(block["down"].weight, std=0.02 / math.sqrt(8))
    assert_init_scale(blocks)
    blocks[2]["up"].reset_parameters()
    assert failure(blocks).findings[0].module == "2.up"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nonfinite_weight(value):
    """A NaN or Inf in any parameter is its own kind, whatever the scheme."""
    for scheme in ("auto", "xavier_uniform"):
        model = apply(init.xavier_uniform_, Model())
        with torch.no_grad():
            model.head.bias[3] = value
        error = failure(model, scheme)
        assert isinstance(error, NonFiniteError)
        assert (error.findings[0].kind, error.findings[0].module) == ("nonfinite-parameter", "head.bias")


def test_equal_rows_are_broken_symmetry():
    """Units that start equal stay equal; zeros, single outputs, depthwise and frozen weights are healthy."""
    for scheme in ("auto", "xavier_uniform"):
        model = apply(init.xavier_uniform_, Model())
        init.constant_(model.encoder.linear3.weight, 0.01)
        error = failure(model, scheme)
        assert error.findings[0].message == "init scale: all output units of encoder.linear3.weight are equal"
    init.zeros_(model.encoder.linear3.weight)
    assert_init_scale(model)
    assert_init_scale(nn.Sequential(apply(lambda w: init.constant_(w, 0.5), nn.Linear(4, 1))))
    blur = nn.Conv2d(4, 4, 3, groups=4)
    init.constant_(blur.weight, 1 / 9)
    assert_init_scale(blur)
    frozen = apply(lambda w: init.constant_(w, 0.5), nn.Linear(4, 4))
    frozen.weight.requires_grad_(False)
    assert_init_scale(frozen)


def test_wrong_mean_is_seen():
    """The right spread around the wrong centre is not the scheme."""
    model = nn.Linear(100, 100)
    init.xavier_uniform_(model.weight)
    with torch.no_grad():
        model.weight.add_(0.05)
    row = failure(model, "xavier_uniform").findings[0].evidence["table"][0]
    assert row["verdict"] == "wrong mean or spread"


def test_attention_is_judged_by_projection():
    """One projection of three that is off is named; torch's own stack passes as xavier_uniform."""
    model = nn.Transformer(32, 4, 1, 1, 64, batch_first=True)
    assert_init_scale(model, "xavier_uniform")
    assert_init_scale(model)
    with torch.no_grad():
        model.encoder.layers[0].self_attn.in_proj_weight[32:64].mul_(3)
    row = failure(model, "xavier_uniform").findings[0].evidence["table"][0]
    assert row["layer"] == "encoder.layers.0.self_attn.in_proj_weight[k]"


def test_recurrent_is_judged_by_gate():
    """One gate of four that is off is named."""
    model = nn.LSTM(32, 32)
    init.xavier_uniform_(model.weight_ih_l0)
    for gate in model.weight_hh_l0.chunk(4):
        init.orthogonal_(gate)
    schemes = {"weight_ih*": "xavier_uniform", "weight_hh*": "orthogonal"}
    assert_init_scale(model, schemes)
    with torch.no_grad():
        init.normal_(model.weight_hh_l0[64:96])
    row = failure(model, schemes).findings[0].evidence["table"][0]
    assert row["layer"] == "weight_hh_l0[g]"


def test_mapping_names_schemes_by_pattern():
    """The first pattern that matches counts, parents match their children, the rest is not judged."""
    model = Model()
    init.kaiming_normal_(model.encoder.linear1.weight)
    init.xavier_uniform_(model.encoder.linear2.weight)
    init.xavier_uniform_(model.encoder.linear3.weight)
    schemes = {"*.linear1": "kaiming_normal", "encoder": "xavier_uniform"}
    assert_init_scale(model, schemes)
    init.normal_(model.encoder.linear3.weight)
    init.normal_(model.head.weight)
    error = failure(model, schemes)
    assert str(error).splitlines()[0] == "init scale: 1 of 3 weights does not follow its scheme"


def test_only_and_skip():
    """Patterns leave weights out of the verdict."""
    model = apply(init.xavier_uniform_, Model())
    model.head.reset_parameters()
    failure(model, "xavier_uniform")
    assert_init_scale(model, "xavier_uniform", skip=("head",))
    assert_init_scale(model, "xavier_uniform", only="encoder.*")
    failure(model, "xavier_uniform", only=["head"])


def test_gain_and_nonlinearity():
    """The gain of the call applies to schemes that have one."""
    model = nn.Linear(100, 100)
    init.xavier_uniform_(model.weight, gain=5 / 3)
    assert_init_scale(model, "xavier_uniform", nonlinearity="tanh")
    assert_init_scale(model, "xavier_uniform", gain=5 / 3)
    failure(model, "xavier_uniform")
    init.kaiming_normal_(model.weight, nonlinearity="linear")
    assert_init_scale(model, "kaiming_normal", nonlinearity="linear")
    failure(model, "kaiming_normal")


def test_embedding_may_keep_its_default_under_a_fan_scheme():
    """A look-up has no fan-in: N(0, 1) passes beside xavier, another spread does not."""
    model = nn.Sequential(nn.Embedding(50, 64), nn.Linear(64, 64))
    apply(init.xavier_uniform_, model)
    assert_init_scale(model, "xavier_uniform")
    init.xavier_uniform_(model[0].weight)
    assert_init_scale(model, "xavier_uniform")
    init.normal_(model[0].weight, std=5)
    failure(model, "xavier_uniform")


def test_tied_weights_are_judged_once():
    """An output layer that shares its weight with the embedding is one row, and either default is right."""
    model = nn.ModuleDict({"embed": nn.Embedding(50, 64), "out": nn.Linear(64, 50, bias=False)})
    model["out"].weight = model["embed"].weight
    assert [row["layer"] for row in init_scale_rows(model)] == ["embed.weight"]
    assert_init_scale(model, "torch_default")
    model["out"].reset_parameters()
    assert_init_scale(model, "torch_default")


def test_effective_weight_of_a_parametrization_is_judged():
    """Spectral normalisation changes the weight that acts; reading it does not advance its power iteration."""
    model = parametrizations.spectral_norm(nn.Linear(64, 64))
    buffers = copy.deepcopy(dict(model.named_buffers()))
    row = init_scale_rows(model)[0]
    assert row["measured_std"] == pytest.approx(float(model.eval().weight.detach().std()), rel=1e-3)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())


def test_own_weight_matrices_are_judged_under_a_named_scheme():
    """A parameter the user's module holds itself is a weight too, whichever side its input is on."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.w_q = nn.Parameter(torch.randn(64, 32))
            self.position = nn.Parameter(torch.randn(64, 32))

    model = Own()
    assert failure(model, "lecun_normal").findings[0].evidence["parameter"] == "w_q"
    with torch.no_grad():
        model.w_q.div_(8)
    assert_init_scale(model, "lecun_normal")


def test_biases_are_notes_only():
    """A bias that is neither zero nor default is a row and a note, never a failure."""
    model = apply(init.xavier_uniform_, Model())
    init.constant_(model.head.bias, 2.0)
    assert_init_scale(model, "xavier_uniform")
    rows = init_scale_rows(model, "xavier_uniform")
    assert [row["layer"] for row in rows if row["verdict"] == "note"] == ["head.bias"]
    model.encoder.linear1.reset_parameters()
    assert "head.bias" in failure(model, "xavier_uniform").findings[0].evidence["note"][0]


def test_half_precision_weights():
    """Rounding to half precision is no other spread."""
    for dtype in (torch.float16, torch.bfloat16):
        model = apply(init.xavier_normal_, Model()).to(dtype)
        assert_init_scale(model, "xavier_normal")
        assert_init_scale(model)


# --- with a batch


def wide(std=None, width=1600):
    model = nn.Sequential(nn.Linear(width, width, bias=False), nn.ReLU(), nn.Linear(width, 4))
    if std is not None:
        init.normal_(model[0].weight, std=std)
    return model


def test_unscaled_weight_moves_the_signal():
    """N(0, 1) in a wide layer enlarges the signal fortyfold: only the batch shows it, a normalisation takes it back."""
    batch = torch.randn(8, 1600)
    assert_init_scale(wide(), batch=batch)
    assert_init_scale(wide(1.0))
    (finding,) = failure(wide(1.0), batch=batch).findings
    assert re.fullmatch(r"init scale: 0.weight enlarges the signal x(39|40|41)(\.\d)?", finding.message)
    assert finding.module == "0"
    assert finding.evidence["next"].startswith("relu follows it (1, ")
    assert finding.remedy == "init.kaiming_normal_(model[0].weight, nonlinearity='relu')"
    normed = nn.Sequential(wide(1.0)[0], nn.LayerNorm(1600), nn.Linear(1600, 4))
    assert_init_scale(normed, batch=batch)


def test_signal_that_vanishes_or_explodes_over_depth():
    """A little too small or too large in every layer is lost over the depth; kaiming keeps it."""

    def deep(gain):
        layers = [layer for _ in range(30) for layer in (nn.Linear(64, 64, bias=False), nn.ReLU())]
        return apply(lambda w: init.kaiming_normal_(w).mul_(gain), nn.Sequential(*layers)).requires_grad_(False)

    batch = torch.randn(16, 64)
    with torch.no_grad():
        assert_init_scale(deep(1.0), batch=batch)
        assert failure(deep(0.3), batch=batch).findings[0].message.startswith("init scale: the signal vanishes to")
        assert failure(deep(3.0), batch=batch).findings[0].message.startswith("init scale: the signal explodes to")


class Residual(nn.Module):
    def __init__(self, gamma):
        super().__init__()
        self.inner = nn.Linear(32, 32)
        self.scale = nn.Linear(32, 32, bias=False)
        init.eye_(self.scale.weight)
        with torch.no_grad():
            self.scale.weight.mul_(gamma)
        self.norm = nn.LayerNorm(32)

    def forward(self, x):
        return x + self.scale(self.inner(self.norm(x)))


@pytest.mark.parametrize("gamma", [0.0, 1e-8, 1.0])
def test_residual_branches_may_start_at_or_near_zero(gamma):
    """Zero-initialised and tiny residual branches leave the stream alone: healthy."""
    model = nn.Sequential(*[Residual(gamma) for _ in range(4)], nn.Linear(32, 2))
    assert_init_scale(model, batch=torch.randn(8, 32))


def test_low_rank_adapters_start_at_zero():
    """B = 0 of a low-rank adapter and a zero head are accepted."""
    model = nn.ModuleDict(
        {"a": nn.Linear(32, 4, bias=False), "b": nn.Linear(4, 32, bias=False), "head": nn.Linear(32, 2)}
    )
    init.zeros_(model["b"].weight)
    init.zeros_(model["head"].weight)
    assert_init_scale(model, batch=torch.randn(3, 32), loss=lambda m, x: m["head"](x + m["b"](m["a"](x))).sum())


def test_nan_born_in_the_first_pass():
    """A layer that makes NaN of finite input is named; -inf is legal."""

    class Log(nn.Module):
        def forward(self, x):
            return x.log()

    assert (
        "makes NaN or Inf"
        in failure(nn.Sequential(nn.Linear(4, 4), Log()), batch=torch.randn(9, 4)).findings[0].message
    )
    assert_init_scale(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Log()), batch=torch.randn(9, 4))


class Everything(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.5)
        self.out = nn.Linear(8, 2)
        self.got = None

    def forward(self, x, scale=None):
        self.got = (type(x).__name__, scale)
        return self.out(self.drop(self.norm(x)))


@pytest.mark.parametrize("kind", ["tensor", "tuple", "pair with target", "dict", "loss", "one row"])
def test_forward_by_type_leaves_the_model_as_it_was(kind):
    """Modes, buffers, hooks and random state are restored, whatever the batch looks like."""
    model, x = Everything(), torch.randn(5, 8)
    model.drop.eval()
    batches = {
        "tensor": x,
        "tuple": (x, 2.0),
        "pair with target": (x, 2.0, torch.ones(5)),
        "dict": {"x": x, "scale": 2.0},
        "loss": {"anything": x},
        "one row": x[:1],
    }
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    loss = (lambda m, b: m(b["anything"], 2.0).sum()) if kind == "loss" else None
    assert_init_scale(model, batch=batches[kind], loss=loss)
    assert model.got == ("Tensor", None if kind in ("tensor", "one row") else 2.0)
    assert (model.training, model.norm.training, model.drop.training) == (True, True, False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_hooks_are_removed_when_the_forward_raises():
    """A forward that fails is the user's error, and leaves nothing behind."""
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(RuntimeError):
        assert_init_scale(model, batch=torch.randn(2, 5))
    assert model.training
    assert not model[0]._forward_hooks
    assert not model[0]._forward_pre_hooks


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"scheme": "glorot"}, ValueError, "scheme must be 'auto', one of xavier_uniform, .* got 'glorot'"),
        ({"scheme": 3}, TypeError, "scheme must be 'auto'"),
        ({"scheme": "normal"}, ValueError, "needs its std, as in 'normal\\(0.02\\)'"),
        ({"scheme": "uniform(1, 1)"}, ValueError, "needs its bounds"),
        ({"scheme": "xavier_uniform(mode='fan_in')"}, ValueError, "xavier_uniform takes gain"),
        ({"scheme": "kaiming_normal(fan_both)"}, ValueError, "mode must be fan_in or fan_out"),
        ({"scheme": "xavier_uniform; import os"}, ValueError, "scheme must be"),
        (
            {"scheme": {"nowhere": "zeros"}},
            ValueError,
            "'nowhere' matches no layer .* there are encoder.linear1",
        ),
        ({"only": "nowhere"}, ValueError, "pattern 'nowhere' matches no layer"),
        ({"skip": "*"}, ValueError, "only and skip leave no weight matrix"),
        ({"skip": [3]}, TypeError, "skip must be fnmatch patterns on module paths, got 3"),
        ({"gain": -1.0}, ValueError, "gain must be positive and finite"),
        ({"gain": "relu"}, TypeError, "gain must be a number"),
        ({"gain": 1.0, "nonlinearity": "relu"}, TypeError, "give gain or nonlinearity, not both"),
        ({"scheme": "kaiming_normal", "nonlinearity": "gelu"}, ValueError, "nonlinearity must be one of linear"),
        ({"loss": len}, TypeError, "loss needs a batch"),
        ({"batch": torch.tensor([[math.nan] * 64])}, ValueError, "batch must be finite"),
        ({"model": nn.ReLU()}, ValueError, "model has no weight matrix to judge"),
        ({"model": 3}, TypeError, "model must be a torch.nn.Module, got int"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    """What was given and what is allowed, at once."""
    given = {"model": Model(), **arguments}
    with pytest.raises(error, match=message):
        assert_init_scale(given.pop("model"), given.pop("scheme", "auto"), **given)


def test_meta_and_lazy_weights_are_passed_over():
    """Weights that have no numbers yet are not judged, and are not enough for a verdict."""
    with pytest.raises(ValueError, match="no weight matrix"):
        assert_init_scale(nn.Linear(3, 3, device="meta"))


def test_orthogonality_by_two_vectors():
    """The probe tells an orthogonal matrix from a random one of the same spread, in every shape."""
    for shape in [(64, 64), (32, 128), (128, 32), (16, 8, 3, 3)]:
        weight = init.orthogonal_(torch.empty(shape), gain=1.5)
        assert orthogonal_gain(weight) == pytest.approx(1.5, rel=1e-3)
        assert orthogonal_gain(torch.randn(shape)) is None
    assert orthogonal_gain(torch.zeros(4, 4)) is None


def test_measure_survives_extreme_scales():
    """Moments of values whose squares leave float32."""
    for scale in (1e30, 1e-30):
        assert measure(torch.randn(1000) * scale).std == pytest.approx(scale, rel=0.1)
    assert measure(torch.zeros(3)) == Measured(3, 0.0, 0.0, 0.0)
