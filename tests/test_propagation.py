"""Observed passes: what is recorded, what follows what, and that nothing of the user's is changed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from pytest_nanstab.checks import _units
from pytest_nanstab.checks._signal import first_pass
from pytest_nanstab.checks.init_scale import init_scale_report
from pytest_nanstab.propagation.depth import gradient_depth, layers_of, signal_depth
from pytest_nanstab.propagation.following import followers
from pytest_nanstab.propagation.probe import observed
from pytest_nanstab.propagation.summary import summary


def seen_by(model, batch, loss=None):
    return first_pass(model, batch, loss)


def by_layer(seen):
    follow = followers(seen)
    return {layer.name: follow[layer.op.index].name for layer in layers_of(seen)}


class Mixed(nn.Module):
    """Modules, functions, methods, in-place calls and parameters of its own."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(3, 8, 3, padding=1)
        self.inner = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.GELU())
        self.mix = nn.Parameter(torch.randn(8, 8) / 3)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        x = self.conv(x).relu_()
        x = self.inner(x.transpose(1, 2))
        x = torch.tanh(x @ self.mix)
        x = self.norm(x + self.normed(x))
        return self.head(x.mean(1))


def test_what_follows_each_layer_is_found_however_it_is_called():
    """A method in place, a module behind dropout, a function behind a matrix product, a norm behind a skip."""
    torch.manual_seed(0)
    seen = seen_by(Mixed(), torch.randn(4, 3, 6), lambda m, x: F.cross_entropy(m(x), torch.zeros(4, dtype=torch.long)))
    assert by_layer(seen) == {
        "conv": "relu",
        "inner.0": "gelu",
        "mix": "tanh",
        "normed": "layer_norm",
        "head": "log_softmax",
    }
    assert all(layer.op.gradient for layer in layers_of(seen))
    conv = next(op for op in seen.ops if op.name == "conv")
    assert conv.module == "conv"
    assert conv.spot[0] == __file__


def test_gradients_are_those_of_autograd():
    """The norm at each result is the norm of what autograd gives there."""
    torch.manual_seed(0)
    first, second = nn.Linear(4, 5), nn.Linear(5, 1)
    model, x = nn.Sequential(first, nn.Tanh(), second), torch.randn(6, 4)
    seen = observed(model, lambda: model(x).square().mean())
    hidden = first(x).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(second(torch.tanh(hidden)).square().mean(), hidden)
    assert layers_of(seen)[0].op.gradient == pytest.approx(gradient.norm().item(), rel=1e-5)
    assert layers_of(seen)[0].op.size == pytest.approx(hidden.square().mean().sqrt().item(), rel=1e-5)
    assert seen.gradients["0.weight"] > 0


def test_nothing_is_changed():
    """Parameters, gradients, buffers, modes, random state and hooks are what they were."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    model[2].eval()
    model(torch.randn(5, 4)).sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    batch = torch.randn(5, 4)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    seen_by(model, batch)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(p.grad, kept) for p, kept in zip(model.parameters(), gradients, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model] == [True, True, False, True]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.filterwarnings("ignore:.*autocast.*:FutureWarning")  # torch 2.4's own checkpointing
def test_models_that_are_no_chain():
    """Tied weights, frozen parts, recurrences, unused layers, checkpointing, sparse and integer inputs."""
    torch.manual_seed(0)
    table = nn.Embedding(9, 8, sparse=True)
    head = nn.Linear(8, 9, bias=False)
    head.weight = table.weight
    seen = seen_by(nn.Sequential(table, head), torch.arange(9))
    assert [layer.name for layer in layers_of(seen)] == ["0"]

    frozen = nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.Tanh(), nn.Linear(4, 1))
    seen = seen_by(frozen, torch.randn(3, 4))
    assert [layer.name for layer in layers_of(seen)] == ["2"]
    assert [layer.name for layer in layers_of(seen, frozen=True)] == ["0", "2"]

    cell, x = nn.RNNCell(4, 4), torch.randn(5, 2, 4)

    def unrolled(model, batch):
        state = torch.zeros(2, 4)
        for item in batch:
            state = model(item, state)
        return state.sum()

    assert len(layers_of(seen_by(cell, x, unrolled))) == 2

    inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    for reentrant in (False, True):
        loss = lambda m, b, how=reentrant: checkpoint(m, b, use_reentrant=how).sum()  # noqa: E731
        seen = seen_by(inner, torch.randn(3, 4, requires_grad=True), loss)
        assert seen.ops


def test_a_loss_without_gradient_is_said():
    """Nothing is judged then, and nothing raises."""
    seen = seen_by(nn.Linear(2, 2), torch.randn(3, 2), lambda m, b: m(b).detach().sum())
    assert seen.failed is not None
    assert gradient_depth(seen) is None


def deep(layer, activation, depth=20, width=32):
    torch.manual_seed(0)
    layers = []
    for _ in range(depth):
        linear = nn.Linear(width, width)
        if layer is not None:
            layer(linear)
        layers += [linear, activation()]
    return nn.Sequential(*layers, nn.Linear(width, 1))


def test_depth_is_told_by_gradient_and_signal():
    """Sigmoids lose the gradient, weights that are too small too, weights that are too large blow up the signal."""
    x = torch.randn(16, 32)
    sigmoid = gradient_depth(seen_by(deep(None, nn.Sigmoid), x))
    assert sigmoid.vanishes
    assert next(iter(sigmoid.shares)) == "sigmoid"
    assert sigmoid.steps == 20
    assert sigmoid.factor**sigmoid.steps == pytest.approx(sigmoid.total)
    small = gradient_depth(seen_by(deep(None, nn.ReLU), x))
    assert next(iter(small.shares)) == "linear"
    he = deep(lambda linear: nn.init.kaiming_normal_(linear.weight, nonlinearity="relu"), nn.ReLU)
    healthy = seen_by(he, x)
    assert gradient_depth(healthy) is None
    assert signal_depth(healthy) is None
    large = signal_depth(seen_by(deep(lambda linear: nn.init.normal_(linear.weight), nn.ReLU, depth=8), x))
    assert not large.vanishes
    assert large.total > 1e3


def test_a_small_branch_beside_a_stream_is_no_decay():
    """Layer scale of 1e-6, also in the first block, whose stream is the data itself."""

    class Block(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.inner, self.outer, self.scale = nn.Linear(16, 16), nn.Linear(16, 16), scale

        def forward(self, x):
            return x + self.scale * self.outer(F.gelu(self.inner(x)))

    torch.manual_seed(0)
    blocks = nn.Sequential(*[Block(1e-6) for _ in range(4)], nn.Linear(16, 1))
    assert gradient_depth(seen_by(blocks, torch.randn(8, 16))) is None


def test_dead_units_and_saturation_need_a_layer_behind_them():
    """What goes straight into the loss may be zero or saturated."""
    torch.manual_seed(0)
    first, x = nn.Linear(4, 8), torch.randn(16, 4)
    with torch.no_grad():
        first.bias.fill_(-50)
    dead = seen_by(nn.Sequential(first, nn.ReLU(), nn.Linear(8, 1)), x)
    (found,) = _units.dead_units([dead])
    assert (found.dead, found.units, _units.layer_name(found.feeds, [dead])) == (8, 8, "0")
    assert _units.dead_units([seen_by(nn.Sequential(first, nn.ReLU()), x)]) == []
    flat = seen_by(nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 1)), 1e4 * x)
    assert _units.flat_activations([flat])[0].op.name == "sigmoid"
    assert _units.flat_activations([seen_by(nn.Sequential(nn.Linear(4, 1), nn.Sigmoid()), 1e4 * x)]) == []


def test_one_batch_is_not_enough_for_a_dead_unit():
    """A unit that another batch wakes is alive."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.zero_()
    passes = [seen_by(model, sign * torch.ones(3, 4)) for sign in (-1, 1)]
    assert len(_units.dead_units(passes[:1])) == 1
    assert _units.dead_units(passes) == []


def test_the_summary_of_a_transformer():
    """Depth, attention and the residual stream, a line each."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    depth, attention, stream = summary(seen_by(model, torch.randn(4, 10, 32)))
    assert depth.startswith("signal x")
    assert attention.startswith("softmax: at least 0.9")
    assert stream.startswith("residual stream x")


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_unusual_models_break_no_check():
    """Sparse and nested tensors, scripted modules, own matrices under any name: judged, or said to be unseen."""
    torch.manual_seed(0)
    scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1)))
    assert init_scale_report(scripted, batch=torch.randn(8, 4)).findings == []

    class Own(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.a, self.b = (nn.Parameter(scale * torch.randn(64, 64)) for _ in range(2))

        def forward(self, x):
            return torch.relu(x @ self.a) @ self.b

    assert init_scale_report(Own(1 / 8), batch=torch.randn(16, 64)).findings == []
    (finding,) = init_scale_report(Own(1.0), batch=torch.randn(16, 64)).findings
    assert finding.message.startswith("init scale: a enlarges the signal x8")
    with pytest.raises(ValueError, match="no weight matrix"):
        init_scale_report(nn.ReLU(), batch=torch.randn(3, 3))


def test_weights_that_are_scaled_on_the_way_and_look_ups_are_not_too_large():
    """Equalised rates, cosine heads, one-hot rows times a matrix: N(0, 1) is right there."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Parameter(torch.randn(64, 64)), nn.Parameter(torch.randn(10, 64))

        def forward(self, x):
            x = F.leaky_relu(F.linear(x, self.first / 8))
            return F.linear(F.normalize(x, dim=-1), F.normalize(self.last, dim=-1))

    class LookUp(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Parameter(torch.randn(50, 32)), nn.Linear(32, 2)

        def forward(self, ids):
            return self.head(F.one_hot(ids, 50).float() @ self.table)

    torch.manual_seed(0)
    assert init_scale_report(Scaled(), batch=torch.randn(16, 64)).findings == []
    assert init_scale_report(LookUp(), batch=torch.arange(50)).findings == []


def test_a_loss_on_a_code_is_an_end_of_its_own():
    """The gradient of a metric loss on an inner layer is no explosion over the depth behind it."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16))
    head = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 1))

    def loss(model, x):
        code = model[0](x)
        return code.square().mean() + 1e-6 * model[1](code).mean()

    assert gradient_depth(seen_by(nn.Sequential(body, head), torch.randn(8, 8), loss)) is None


def test_a_bias_that_drowns_the_signal_and_one_that_switches_a_unit_off():
    """-10 in every unit of a hidden layer is a fault; a sentinel in one, or a prior in the last layer, is meant."""
    torch.manual_seed(0)

    def model(hidden, last=0.0):
        layers = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
        with torch.no_grad():
            layers[0].bias[: len(hidden)] = torch.tensor(hidden)
            layers[2].bias.fill_(last)
        return layers

    batch = torch.randn(16, 8)
    assert init_scale_report(model([-1e4]), batch=batch).findings == []
    assert init_scale_report(model([], last=-10.0), batch=batch).findings == []
    (finding,) = init_scale_report(model([10.0] * 16), batch=batch).findings
    assert finding.message.startswith("init scale: 0.bias drowns the signal, x")
    assert finding.remedy == "init.zeros_(model[0].bias)"
