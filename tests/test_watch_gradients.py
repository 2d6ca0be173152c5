"""Gradients: finite, clipped with an effect, scaled and unscaled."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from watched import at, batches, every_way, kinds, loss_of, mlp, recorded, train

from pytest_nanstab import NonFiniteError, watch

NAN, INF = float("nan"), float("inf")


def sgd(model, rate=0.01):
    return torch.optim.SGD(model.parameters(), rate)


class SpoilGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, value):
        ctx.value = value
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.value, None


@every_way
@pytest.mark.parametrize("value", [NAN, INF])
def test_a_bad_gradient_with_a_finite_loss(ask, value):
    """A gradient that is born in backward is found although every loss is finite."""
    model = mlp()

    def body(value):
        train(model, sgd(model), 4, spoil=lambda step, loss: SpoilGradient.apply(loss, value) if step == 3 else loss)

    assert ask(lambda: body(1.0)) == []
    findings = ask(lambda: body(value))
    assert findings[0].kind == "nonfinite-gradient"
    assert findings[0].step == 3
    assert findings[0].evidence["parameter"] == "0.weight"


@every_way
def test_a_bad_gradient_in_the_last_step(ask):
    """The last step of a test has no loss after it: its gradient, or what it did to the parameters, is found."""
    model = mlp()
    spoil = lambda step, loss: SpoilGradient.apply(loss, NAN) if step == 200 else loss  # noqa: E731
    findings = ask(lambda: train(model, sgd(model), 200, spoil=spoil))
    assert findings[0].kind in ("nonfinite-gradient", "nonfinite-parameter")


def test_a_sampled_finding_tells_its_range():
    """Zero-change mode may miss the step; the finding then says between which steps it happened."""
    from watched import zero_change

    model = mlp()
    with zero_change() as region:
        optimizer = sgd(model)
        train(model, optimizer, 50)
        region.due = 10_000
        train(model, optimizer, 5, spoil=lambda step, loss: SpoilGradient.apply(loss, NAN) if step == 2 else loss)
    (finding,) = region.findings
    assert finding.kind == "nonfinite-parameter"
    first, last = finding.evidence["step_range"]
    assert first <= 52 <= last


@every_way
def test_a_rare_embedding_row(ask):
    """A NaN in one row of a sparse gradient is found; healthy sparse training is not."""
    torch.manual_seed(0)
    table = nn.Embedding(50, 3, sparse=True)

    def body(value):
        optimizer = torch.optim.SparseAdam(table.parameters())
        for index in range(4):
            optimizer.zero_grad()
            loss = table(torch.tensor([index, index + 10])).pow(2).sum()
            (SpoilGradient.apply(loss, value) if index == 2 else loss).backward()
            optimizer.step()

    assert ask(lambda: body(1.0)) == []
    assert kinds(ask(lambda: body(NAN)))[0] == "nonfinite-gradient"


@every_way
def test_unusual_parameters_are_healthy(ask):
    """Complex, half precision, frozen and unused parameters, tied weights, and a gradient that comes late."""
    torch.manual_seed(0)

    def complex_parameters():
        w = nn.Parameter(torch.randn(3, dtype=torch.complex64))
        optimizer = torch.optim.Adam([w], 0.01)
        for _ in range(4):
            optimizer.zero_grad()
            (w * torch.randn(3, dtype=torch.complex64)).abs().pow(2).sum().backward()
            optimizer.step()

    def half(dtype):
        model = mlp().to(dtype)
        optimizer = sgd(model)
        for x, y in batches(4):
            optimizer.zero_grad()
            loss_of(model, x.to(dtype), y.to(dtype)).backward()
            optimizer.step()

    def frozen():
        model = mlp()
        model[0].requires_grad_(False)
        unused = nn.Parameter(torch.ones(2))
        optimizer = torch.optim.Adam([*model.parameters(), unused])
        train(model, optimizer, 6)
        model[0].requires_grad_(True)
        train(model, optimizer, 6)

    def tied():
        embedding, head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        head.weight = embedding.weight
        model = nn.Sequential(embedding, head)
        optimizer = torch.optim.AdamW(model.parameters())
        for _ in range(4):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(torch.arange(7)), torch.arange(7)).backward()
            optimizer.step()

    def zero_residual():
        branch = nn.Linear(4, 4)
        nn.init.zeros_(branch.weight)
        nn.init.zeros_(branch.bias)
        model = nn.Sequential(branch, nn.LayerNorm(4), nn.Linear(4, 1))
        train(model, torch.optim.Adam(model.parameters()), 6)

    for body in (complex_parameters, lambda: half(torch.float16), lambda: half(torch.bfloat16), frozen, tied):
        assert ask(body) == []
    assert ask(zero_residual) == []


@every_way
@pytest.mark.parametrize("dtype", [torch.complex64, torch.float16, torch.bfloat16])
def test_bad_gradients_of_unusual_parameters(ask, dtype):
    """The failing twin: one NaN among them is found."""
    w = nn.Parameter(torch.ones(3, dtype=dtype))
    optimizer = torch.optim.SGD([w], 0.01)

    def body():
        for step in range(3):
            optimizer.zero_grad()
            w.abs().sum().backward()
            if step == 1:
                w.grad[1] = NAN
            optimizer.step()

    assert kinds(ask(body))[0] == "nonfinite-gradient"


@every_way
def test_a_parameter_group_added_later(ask):
    """What `add_param_group` brings is judged from then on."""
    model, late = mlp(), nn.Parameter(torch.ones(2))
    optimizer = sgd(model)

    def body(value):
        train(model, optimizer, 3)
        optimizer.add_param_group({"params": [late]})
        spoil = lambda step, loss: loss + SpoilGradient.apply(late.sum(), value if step == 3 else 1.0)  # noqa: E731
        train(model, optimizer, 4, spoil=spoil)

    findings = ask(lambda: body(NAN))
    assert findings[0].kind == "nonfinite-gradient"
    assert findings[0].step == 6


@every_way
def test_two_models_and_their_optimizers(ask):
    """A fault in the second of two models is named there."""
    first, second = mlp(0), mlp(1)
    optimizers = [torch.optim.Adam(first.parameters()), sgd(second)]

    def body(value):
        for x, y in batches(4):
            for model, optimizer in zip((first, second), optimizers, strict=True):
                optimizer.zero_grad()
                loss = loss_of(model, x, y)
                (SpoilGradient.apply(loss, value) if model is second else loss).backward()
                optimizer.step()

    assert ask(lambda: body(1.0)) == []
    (finding,) = ask(lambda: body(NAN))
    assert finding.evidence["optimizer"] == "SGD"


# -- clips -------------------------------------------------------------------------------------------------------------


def norm_clip(parameters):
    clip_grad_norm_(parameters, 0.1)


def value_clip(parameters):
    clip_grad_value_(parameters, 0.01)


def late_norm_clip(parameters):
    torch.nn.utils.clip_grad_norm_(parameters, 0.1)


CLIPS = [norm_clip, value_clip, late_norm_clip]


@every_way
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("cleared", [True, False])
def test_a_clip_before_backward(ask, clip, cleared):
    """A clip that runs before `backward()` is found, with `zero_grad` before it or after it."""
    model = mlp()

    def body(early):
        optimizer = sgd(model)
        for p in model.parameters():
            p.grad = torch.zeros_like(p)  # torch's own clip by value refuses to run without any gradient
        for x, y in batches(4):
            if cleared:
                optimizer.zero_grad(set_to_none=clip is not value_clip)
            if early:
                clip(model.parameters())
            if not cleared:
                optimizer.zero_grad()
            loss_of(model, x, y).backward()
            if not early:
                clip(model.parameters())
            optimizer.step()

    assert ask(lambda: body(False)) == []
    findings = ask(lambda: body(True))
    assert kinds(findings)[:1] == ["ineffective-clip"]
    assert findings[0].source.rpartition(":")[0].endswith("test_watch_gradients.py")


@every_way
@pytest.mark.parametrize("clip", CLIPS)
def test_a_clip_after_the_step(ask, clip):
    """A clip between `step()` and `zero_grad()` does nothing either."""
    model = mlp()

    def body():
        optimizer = sgd(model)
        for x, y in batches(4):
            optimizer.zero_grad()
            loss_of(model, x, y).backward()
            optimizer.step()
            clip(model.parameters())

    assert kinds(ask(body))[:1] == ["ineffective-clip"]


@every_way
@pytest.mark.filterwarnings("ignore:.parameters. is an empty generator")
def test_a_generator_used_up(ask):
    """A generator of parameters that the optimizer has used up gives a clip nothing."""
    model = mlp()

    def body(anew):
        parameters = model.parameters()
        optimizer = torch.optim.SGD(parameters, 0.01)
        for x, y in batches(3):
            optimizer.zero_grad()
            loss_of(model, x, y).backward()
            clip_grad_norm_(model.parameters() if anew else parameters, 1.0)
            optimizer.step()

    assert ask(lambda: body(True)) == []
    assert kinds(ask(lambda: body(False)))[:1] == ["ineffective-clip"]


@every_way
@pytest.mark.filterwarnings("ignore:.parameters. is an empty generator")
def test_clipping_nothing_on_purpose(ask):
    """An empty selection of parameters is no mistake: none of these had a gradient."""
    model = mlp()

    def body():
        optimizer = sgd(model)
        for x, y in batches(3):
            optimizer.zero_grad()
            loss_of(model, x, y).backward()
            clip_grad_norm_([], 1.0)
            clip_grad_norm_([p for p in model.parameters() if p.dim() > 5], 1.0)
            clip_grad_norm_((p for p in model.parameters() if p.dim() > 5), 1.0)
            optimizer.step()

    assert ask(body) == []


def in_accumulation(model):
    optimizer = sgd(model)
    for _ in range(3):
        optimizer.zero_grad()
        for x, y in batches(3):
            loss_of(model, x, y).backward()
            clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()


def joint_over_two(model):
    other = mlp(5)
    both = [*model.parameters(), *other.parameters()]
    optimizers = [sgd(model), torch.optim.Adam(other.parameters())]
    for x, y in batches(4):
        for optimizer in optimizers:
            optimizer.zero_grad()
        (loss_of(model, x, y) + loss_of(other, x, y)).backward()
        clip_grad_norm_(both, 0.1)
        for optimizer in optimizers:
            optimizer.step()


def adversarial(model):
    critic = mlp(5)
    optimizers = [sgd(model), torch.optim.Adam(critic.parameters())]
    for x, y in batches(4):
        optimizers[1].zero_grad()
        loss_of(critic, x, y).backward()
        clip_grad_norm_(critic.parameters(), 0.1)
        optimizers[1].step()
        optimizers[0].zero_grad()
        (loss_of(model, x, y) + critic(x).mean()).backward()
        clip_grad_norm_(model.parameters(), 0.1)
        optimizers[0].step()


def interleaved(model):
    other = mlp(5)
    optimizers = [sgd(model), sgd(other)]
    for x, y in batches(4):
        for each, optimizer in zip((model, other), optimizers, strict=True):
            optimizer.zero_grad()
            loss_of(each, x, y).backward()
            clip_grad_norm_(each.parameters(), 0.1)
        for optimizer in optimizers:
            optimizer.step()


def everything_each_time(model):
    other = mlp(5)
    both = [*model.parameters(), *other.parameters()]
    optimizers = [sgd(model), sgd(other)]
    for x, y in batches(4):
        for each, optimizer in zip((model, other), optimizers, strict=True):
            optimizer.zero_grad()
            loss_of(each, x, y).backward()
            clip_grad_norm_(both, 0.1)
            optimizer.step()


def both_clipped_one_at_a_time(model):
    other = mlp(5)
    optimizers = [sgd(model), sgd(other)]
    for x, y in batches(4):
        for each, optimizer in zip((model, other), optimizers, strict=True):
            optimizer.zero_grad()
            loss_of(each, x, y).backward()
            clip_grad_norm_(model.parameters(), 0.1)
            clip_grad_norm_(other.parameters(), 0.1)
            optimizer.step()


def with_frozen_part(model):
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.01)
    for x, y in batches(6):
        optimizer.zero_grad()
        loss_of(model, x, y).backward()
        clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()


def frozen_before_backward(model):
    backbone = mlp(5).requires_grad_(False)
    optimizer = torch.optim.SGD([*model.parameters(), *backbone.parameters()], 0.01)
    for x, y in batches(4):
        optimizer.zero_grad()
        clip_grad_norm_(backbone.parameters(), 0.1)
        loss_of(model, x + 0 * backbone(x), y).backward()
        clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()


def per_sample(model):
    optimizer = sgd(model)
    for x, y in batches(4):
        sums = [torch.zeros_like(p) for p in model.parameters()]
        for row, target in zip(x, y, strict=True):
            optimizer.zero_grad()
            loss_of(model, row[None], target[None]).backward()
            clip_grad_norm_(model.parameters(), 0.1)
            for total, p in zip(sums, model.parameters(), strict=True):
                total.add_(p.grad)
        for total, p in zip(sums, model.parameters(), strict=True):
            p.grad = total / len(x)
        optimizer.step()


def two_kinds(model):
    optimizer = sgd(model)
    for x, y in batches(4):
        optimizer.zero_grad()
        loss_of(model, x, y).backward()
        clip_grad_value_(model.parameters(), 0.01)
        clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()


def every_second_step(model):
    optimizer = sgd(model)
    for index, (x, y) in enumerate(batches(6)):
        loss_of(model, x, y).backward()
        clip_grad_norm_(model.parameters(), 0.1)
        if index % 2:
            optimizer.step()
            optimizer.zero_grad()


HEALTHY_CLIPS = [
    in_accumulation,
    joint_over_two,
    adversarial,
    interleaved,
    everything_each_time,
    both_clipped_one_at_a_time,
    with_frozen_part,
    frozen_before_backward,
    per_sample,
    two_kinds,
    every_second_step,
]


@every_way
@pytest.mark.parametrize("loop", HEALTHY_CLIPS)
def test_loops_whose_clips_have_an_effect(ask, loop):
    """Clips that shape what some optimizer receives are never called ineffective."""
    assert ask(lambda: loop(mlp())) == []


@every_way
def test_a_norm_that_overflows_in_the_clip(ask):
    """Squares of finite gradients can overflow: the clip then scales every gradient to zero."""
    model = mlp()

    def body(size):
        optimizer = sgd(model)
        for x, y in batches(2):
            optimizer.zero_grad()
            (loss_of(model, x, y) * size).backward()
            clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    assert ask(lambda: body(1e15)) == []
    findings = ask(lambda: body(1e25))
    assert kinds(findings)[:1] == ["nonfinite-gradient"]
    assert "overflowed" in findings[0].message


def test_large_finite_gradients_are_not_infinite():
    """A norm whose squares overflow float32 is measured in double precision, not called infinite."""
    model = mlp()
    with watch() as run:
        train(model, sgd(model, 0.0), 2, spoil=at(2, 1e25))
    assert run.grad_norm[1] == pytest.approx(1e25 * run.grad_norm[0], rel=1)


# -- loss scaling ------------------------------------------------------------------------------------------------------


def scaled_loop(model, optimizer, scaler, *, overflow=(), clip=None, unscale=True, steps=4):
    """A loop with a GradScaler; the scaled gradients of the steps in `overflow` are infinite."""
    for step, (x, y) in enumerate(batches(steps), start=1):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, x, y)).backward()
        if step in overflow:
            model[0].weight.grad[0, 0] = INF
        if clip is not None:
            if unscale:
                scaler.unscale_(optimizer)
            clip(model.parameters())
        scaler.step(optimizer)
        scaler.update()


@every_way
@pytest.mark.parametrize("bad", [(), (1,), (2, 3), (4,)])
@pytest.mark.parametrize("clip", [None, norm_clip, value_clip])
def test_a_scaler_that_skips_steps_is_healthy(ask, bad, clip):
    """GradScaler leaves overflowing steps out: that is what it is for."""
    model = mlp()
    assert ask(lambda: scaled_loop(model, sgd(model), torch.amp.GradScaler("cpu"), overflow=bad, clip=clip)) == []


@every_way
def test_a_scaled_loss_that_is_not_finite(ask):
    """A NaN loss under a scaler is skipped like an overflow."""
    model, scaler = mlp(), torch.amp.GradScaler("cpu")

    def body():
        optimizer = sgd(model)
        for step, (x, y) in enumerate(batches(4), start=1):
            optimizer.zero_grad()
            scaler.scale(loss_of(model, x, y) * (NAN if step == 2 else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()

    assert ask(body) == []


def test_skipped_steps_are_counted_apart():
    """A skipped step is no step of the run."""
    model = mlp()
    with watch() as run:
        scaled_loop(model, sgd(model), torch.amp.GradScaler("cpu"), overflow=(2, 3), steps=5)
    assert (run.steps, run.skipped_steps) == (3, 2)
    assert len(run.loss) == len(run.grad_norm) == 3


@every_way
@pytest.mark.parametrize(("skips", "after", "expected"), [(9, 0, []), (10, 0, ["stuck-loss-scale"]), (12, 1, [])])
def test_a_stuck_scale(ask, skips, after, expected):
    """A test that ends with ten skipped attempts has a stuck scale; nine are too few, and a scale may settle late."""
    model = mlp()
    bad = tuple(range(2, 2 + skips))
    scaler, steps = torch.amp.GradScaler("cpu"), 1 + skips + after
    assert kinds(ask(lambda: scaled_loop(model, sgd(model), scaler, overflow=bad, steps=steps))) == expected


@every_way
def test_a_scale_below_one(ask):
    """A scale that fell below 1 is stuck."""
    model = mlp()

    def body(bad):
        scaled_loop(model, sgd(model), torch.amp.GradScaler("cpu", init_scale=4.0), overflow=bad, steps=5)

    assert ask(lambda: body((1, 2))) == []
    assert kinds(ask(lambda: body((1, 2, 3)))) == ["stuck-loss-scale"]


def test_a_streak_below_one_is_told_once():
    """A scale that fell below 1 within a streak that lasts to the end: two signs, one finding."""
    model = mlp()

    def body(bad, steps):
        scaled_loop(model, sgd(model), torch.amp.GradScaler("cpu", init_scale=4.0), overflow=bad, steps=steps)

    assert kinds(recorded(lambda: body(range(1, 15), 14))) == ["stuck-loss-scale"]
    assert kinds(recorded(lambda: body([*range(1, 5), *range(6, 17)], 16))) == ["stuck-loss-scale"] * 2


@every_way
@pytest.mark.parametrize("clip", [norm_clip, value_clip])
def test_a_clip_of_scaled_gradients(ask, clip):
    """A clip without `unscale_` before it is found."""
    model = mlp()
    findings = ask(lambda: scaled_loop(model, sgd(model), torch.amp.GradScaler("cpu"), clip=clip, unscale=False))
    assert kinds(findings)[:1] == ["scaled-clip"]


@every_way
def test_gradients_unscaled_by_hand(ask):
    """Who divides by the scale, clips and steps by himself does it right."""
    model, scaler = mlp(), torch.amp.GradScaler("cpu")

    def body():
        optimizer = sgd(model)
        for x, y in batches(4):
            optimizer.zero_grad()
            scaler.scale(loss_of(model, x, y)).backward()
            for p in model.parameters():
                p.grad.div_(scaler.get_scale())
            clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            scaler.update(2.0**16)

    assert ask(body) == []


@every_way
@pytest.mark.parametrize("enabled", [True, False])
def test_one_scaler_for_two_optimizers(ask, enabled):
    """Two optimizers share a scaler; one of them skips now and then."""
    first, second, scaler = mlp(0), mlp(1), torch.amp.GradScaler("cpu", enabled=enabled)

    def body():
        optimizers = [sgd(first), sgd(second)]
        for step, (x, y) in enumerate(batches(4)):
            for model, optimizer in zip((first, second), optimizers, strict=True):
                optimizer.zero_grad()
                scaler.scale(loss_of(model, x, y)).backward()
            if step == 2 and enabled:
                first[0].weight.grad[0, 0] = INF
            for model, optimizer in zip((first, second), optimizers, strict=True):
                scaler.unscale_(optimizer)
                clip_grad_norm_(model.parameters(), 0.1)
                scaler.step(optimizer)
            scaler.update()

    assert ask(body) == []


@pytest.mark.parametrize("ask_clip", [None, norm_clip])
def test_a_fused_optimizer_unscales_in_its_kernel(ask_clip):
    """A fused optimizer is called even for skipped steps: they are counted as skipped, and norms are unscaled."""
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    with watch() as run:
        scaled_loop(model, optimizer, torch.amp.GradScaler("cpu"), overflow=(2,), steps=4, clip=ask_clip)
    plain = mlp()
    with watch() as expected:
        train(plain, torch.optim.Adam(plain.parameters()), 1)
    assert (run.steps, run.skipped_steps) == (3, 1)
    assert run.grad_norm[0] == pytest.approx(expected.grad_norm[0], rel=1e-5)
    assert run.loss[0] == pytest.approx(expected.loss[0], rel=1e-6)


def test_a_fused_optimizer_gets_stuck():
    """Ten skips in a row of a fused optimizer are a stuck scale, and a clip without `unscale_` is found."""
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    scaler = torch.amp.GradScaler("cpu")
    bad = tuple(range(2, 12))
    findings = recorded(lambda: scaled_loop(model, optimizer, scaler, overflow=bad, steps=11))
    assert kinds(findings) == ["stuck-loss-scale"]
    findings = recorded(lambda: scaled_loop(model, optimizer, scaler, clip=norm_clip, unscale=False))
    assert kinds(findings)[:1] == ["scaled-clip"]


@every_way
def test_gradients_made_by_hand(ask):
    """Gradients need no backward: they are judged when the optimizer uses them."""
    w = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([w], 0.1)

    def body(value):
        for _ in range(3):
            w.grad = torch.full((3,), value)
            optimizer.step()

    assert ask(lambda: body(1.0)) == []
    assert kinds(ask(lambda: body(NAN)))[:1] == ["nonfinite-gradient"]


def test_the_watch_raises_before_the_parameters_change():
    """A bad gradient does not reach the parameters of a test that is watched strictly."""
    model = mlp()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(NonFiniteError), watch():
        train(model, sgd(model), 1, spoil=lambda _, loss: SpoilGradient.apply(loss, NAN))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
