"""`nanstab.train` and `nanstab.search`: healthy trainings pass and are measured, broken ones fail at the right step."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW

from pytest_nanstab import NonFiniteError, StabilityError, TrainingSetup
from pytest_nanstab.strategies import TensorSpec
from pytest_nanstab.suite.fixture import Nanstab


@pytest.fixture
def harness():
    return Nanstab()


def mse(model, batch):
    x, y = batch
    return (model(x) - y).square().mean()


def data(rows=8, count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = [torch.randn(rows, 4, generator=generator) for _ in range(count)]
    return [(row, row.sum(1, keepdim=True)) for row in x]


def perceptron(*extra):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), *extra, nn.Tanh(), nn.Linear(16, 1))


def setup_of(own_model=None, **changes):
    model = perceptron() if own_model is None else own_model
    given = {"model": model, "loss": mse, "optimizer": SGD(model.parameters(), 0.05), "batches": data()}
    return TrainingSetup(**{**given, **changes})


# --- healthy trainings


def test_a_healthy_training_learns_and_is_measured(harness):
    """One entry per step, in place, with the loss falling."""
    setup = setup_of()
    before = setup.model[0].weight.clone()
    run = harness.train(setup, steps=30)
    assert run.steps == 30
    for values in (run.loss, run.grad_norm, run.clipped_grad_norm, run.update_ratio):
        assert len(values) == 30
        assert all(value is not None for value in values)
    assert run.loss[-1] < 0.5 * run.loss[0]
    assert run.headroom["activation"]
    assert not run.findings
    assert not torch.equal(before, setup.model[0].weight)


def scheduled():
    model = perceptron()
    optimizer = AdamW(model.parameters(), 1e-2)
    return setup_of(model, optimizer=optimizer, lr_scheduler=torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.5))


def plateau():
    model = perceptron()
    optimizer = SGD(model.parameters(), 1e-2)
    return setup_of(model, optimizer=optimizer, lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer))


def tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    return setup_of(model, loss=lambda m, b: (m(b[0]) - b[0]).square().mean(), optimizer=SGD(model.parameters(), 0.01))


def frozen():
    model = perceptron()
    model[0].requires_grad_(False)
    return setup_of(model, optimizer=SGD(model[2].parameters(), 0.05))


def lbfgs():
    model = perceptron()
    return setup_of(model, optimizer=torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4))


def adversarial_pair():
    generator, critic = nn.Linear(2, 4), nn.Sequential(nn.Linear(4, 8), nn.LeakyReLU(), nn.Linear(8, 1))
    model = nn.ModuleDict({"generator": generator, "critic": critic})
    first, second = SGD(generator.parameters(), 0.01), Adam(critic.parameters(), 1e-3)
    bce = nn.functional.binary_cross_entropy_with_logits

    def training_step(batch):
        real = batch[0]
        fake = generator(torch.randn(len(real), 2))
        second.zero_grad()
        score = bce(critic(real), torch.ones(len(real), 1)) + bce(critic(fake.detach()), torch.zeros(len(real), 1))
        score.backward()
        second.step()
        first.zero_grad()
        loss = bce(critic(fake), torch.ones(len(real), 1))
        loss.backward()
        first.step()
        return loss

    def loss(model, batch):
        return bce(model["critic"](batch[0]), torch.ones(len(batch[0]), 1))

    return setup_of(model, optimizer=[first, second], training_step=training_step, loss=loss)


def accumulating():
    model = perceptron()
    optimizer = SGD(model.parameters(), 0.05)
    count = 0

    def training_step(batch):
        nonlocal count
        count += 1
        loss = mse(model, batch) / 2
        loss.backward()
        if count % 2 == 0:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return loss

    return setup_of(model, optimizer=optimizer, training_step=training_step)


class CausalAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 1)

    def forward(self, x):
        q, k, v = self.qkv(x.unsqueeze(0)).chunk(3, -1)
        scores = q @ k.transpose(-1, -2) / 2
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        return self.out(torch.softmax(scores.masked_fill(mask, float("-inf")), -1) @ v)[0]


HEALTHY = {
    "batch norm": lambda: setup_of(perceptron(nn.BatchNorm1d(16))),
    "dropout": lambda: setup_of(perceptron(nn.Dropout(0.3))),
    "clip": lambda: setup_of(clip_grad_norm=0.5),
    "schedule": scheduled,
    "plateau": plateau,
    "tied weights": tied,
    "frozen layer": frozen,
    "causal mask": lambda: setup_of(CausalAttention()),
    "LBFGS": lbfgs,
    "two optimizers": adversarial_pair,
    "accumulation": accumulating,
}


@pytest.mark.parametrize("make", HEALTHY.values(), ids=HEALTHY)
def test_healthy_programs_pass(harness, make):
    """What good programs do is no finding."""
    run = harness.train(make(), steps=14)
    assert run.findings == []
    assert run.steps >= 7


def test_steps_count_optimizer_steps(harness):
    """Accumulation over two batches steps every second time; two optimizers step twice per batch."""
    assert harness.train(accumulating(), steps=10).steps == 5
    assert harness.train(adversarial_pair(), steps=5).steps == 10


@pytest.mark.parametrize("precision", ["64-true", "32-true", "bf16-true", "bf16-mixed", "16-mixed"])
def test_every_precision_trains(harness, precision):
    """The same setup in other arithmetic; the default dtype is float32 before and after."""
    run = harness.train(setup_of(clip_grad_norm=1.0), steps=6, precision=precision)
    assert run.steps + run.skipped_steps == 6
    assert torch.get_default_dtype() == torch.float32


def test_a_skipped_scaler_step_does_not_advance_the_schedule(harness):
    """The loss scale is lowered first; the schedule waits for a real step and torch has nothing to warn about."""
    model = perceptron()
    optimizer = SGD(model.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    batches = [(x, y * 30) for x, y in data()]
    setup = setup_of(model, optimizer=optimizer, lr_scheduler=schedule, batches=batches)
    run = harness.train(setup, steps=12, precision="16-mixed")
    assert run.skipped_steps > 0
    assert schedule.last_epoch == run.steps == 12 - run.skipped_steps


def test_clip_grad_norm_bounds_what_the_optimizer_receives(harness):
    """The raw norm is kept beside the clipped one."""
    run = harness.train(setup_of(clip_grad_norm=0.01), steps=3)
    assert all(clipped <= 0.0101 < raw for raw, clipped in zip(run.grad_norm, run.clipped_grad_norm, strict=True))


def test_training_is_reproducible_and_leaves_random_states_alone(harness):
    """Same seed, same losses; torch's and Python's generators are where they were; another seed differs."""
    states = torch.get_rng_state(), random.getstate()
    losses = [harness.train(setup_of(perceptron(nn.Dropout(0.5))), steps=4, seed=seed).loss for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]
    torch.manual_seed(0)
    perceptron()
    assert random.getstate() == states[1]
    harness.train(setup_of(), steps=1)
    after = torch.get_rng_state()
    torch.manual_seed(0)
    perceptron()
    assert torch.equal(after, torch.get_rng_state())


def test_a_watched_training_is_bit_identical_to_a_bare_loop(harness):
    """The driver adds nothing to the arithmetic."""
    watched = harness.train(setup_of(), steps=5).loss
    setup = setup_of()
    bare = []
    for step in range(5):
        setup.optimizer.zero_grad()
        loss = mse(setup.model, setup.batches[step % 3])
        loss.backward()
        setup.optimizer.step()
        bare.append(loss.item())
    assert watched == bare


def test_modes_come_back_also_after_a_failure(harness):
    """A model handed over in eval mode is in eval mode afterwards."""
    setup = setup_of(batches=[(torch.full((2, 4), float("nan")), torch.ones(2, 1))])
    setup.model.eval()
    with pytest.raises(NonFiniteError):
        harness.train(setup, steps=2)
    assert not setup.model.training


# --- broken trainings


def test_a_rate_too_high_is_named_with_its_step(harness):
    """The divergence is raised at the step where it becomes non-finite, with the facts of the run."""
    setup = setup_of(nn.Linear(4, 1), batches=data(count=5))
    setup.optimizer.param_groups[0]["lr"] = 1e6
    with pytest.raises(NonFiniteError) as caught:
        harness.train(setup, steps=50, seed=7)
    finding = caught.value.findings[0]
    assert 1 < finding.step < 50
    assert finding.evidence["batch"] == finding.step
    assert finding.evidence["steps"] == 50
    assert finding.evidence["seed"] == 7
    assert finding.evidence["precision"] == "32-true"
    assert finding.evidence["device"] == "cpu"


def test_log_of_softmax_is_found(harness):
    """The textbook formula: a saturated class gives log(0)."""
    model = nn.Linear(4, 3)

    def loss(model, batch):
        return -torch.log(torch.softmax(model(batch[0]) * 500, -1))[:, 0].mean()

    with pytest.raises(NonFiniteError, match="loss at step 1"):
        harness.train(setup_of(model, loss=loss), steps=3)


def test_adam_without_eps_is_found(harness):
    """0 / 0 where a gradient is exactly zero: the parameter is named."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    with torch.no_grad():
        model[0].bias.fill_(-100)
    setup = setup_of(model, optimizer=Adam(model.parameters(), 1e-3, eps=0))
    with pytest.raises(NonFiniteError) as caught:
        harness.train(setup, steps=3)
    assert caught.value.findings[0].kind == "nonfinite-parameter"
    assert caught.value.findings[0].step == 1


def test_a_limit_of_the_call_is_raised(harness):
    """A user's bound fails as a StabilityError that names limit and source."""
    with pytest.raises(StabilityError) as caught:
        harness.train(setup_of(), steps=3, max_grad_norm=1e-6)
    assert not isinstance(caught.value, NonFiniteError)
    assert caught.value.findings[0].evidence["limit_name"] == "max_grad_norm"
    assert caught.value.findings[0].evidence["limit_source"] == "call"


def test_inherited_limits_hold_until_the_call_removes_them():
    """None in the call takes a limit of the marker away."""
    from pytest_nanstab.config import Limit

    strict = Nanstab(limits={"max_loss": Limit(1e-9, "marker")})
    with pytest.raises(StabilityError):
        strict.train(setup_of(), steps=2)
    assert strict.train(setup_of(), steps=2, max_loss=None).steps == 2
    assert repr(strict) == "<nanstab: max_loss=1e-09>"


# --- wrong use


@pytest.mark.parametrize(
    ("loss", "error", "words"),
    [
        (
            lambda m, b: m(b[0]).mean().item(),
            TypeError,
            "loss must return the loss as a scalar tensor, got .*; leave out .item",
        ),
        (lambda m, b: m(b[0]), ValueError, r"must return a scalar, got shape \[8, 1\]"),
        (lambda m, b: m(b[0]).mean().detach(), ValueError, "must return a tensor that requires grad"),
        (lambda m, b: (m(b[0]) > 0).sum(), TypeError, "must return a floating tensor, got dtype torch.int64"),
    ],
)
def test_a_loss_that_cannot_be_trained_on_is_a_usage_error(harness, loss, error, words):
    """The message says what the loss returned and what it must return."""
    with pytest.raises(error, match=words):
        harness.train(setup_of(loss=loss), steps=2)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"steps": 0}, ValueError, "steps must be 1 or more"),
        ({"steps": 2.0}, TypeError, "steps must be a whole number"),
        ({"precision": "fp16"}, ValueError, "precision must be one of 64-true"),
        ({"seed": "a"}, TypeError, "seed must be a whole number"),
        ({"max_gradnorm": 1}, TypeError, "unknown argument 'max_gradnorm'"),
    ],
)
def test_wrong_arguments_raise_at_once(harness, arguments, error, words):
    """Nothing is trained before the arguments are checked."""
    with pytest.raises(error, match=words):
        harness.train(setup_of(), **arguments)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss": lambda model: model}, r"loss is called as loss\(model, batch\), which .* does not take: too many"),
        ({"loss": lambda m, b, extra: m}, r"loss is called as loss\(model, batch\), which .* missing a required"),
        ({"loss": nn.MSELoss()}, r"loss is called as loss\(model, batch\), and MSELoss\(\) takes a prediction"),
        ({"loss": nn.functional.mse_loss}, r"takes a prediction and a target: write a function, such as lambda model"),
        ({"training_step": lambda: None}, r"training_step is called as training_step\(batch\), which"),
        ({"repair": lambda batch, more: batch}, r"repair is called as repair\(batch\), which"),
    ],
)
def test_functions_that_cannot_be_called_as_they_will_be(changes, words):
    """Known when the setup is made; functions without a signature, and with defaults, are fine."""
    with pytest.raises(TypeError, match=words):
        setup_of(**changes)
    setup_of(repair=dict, loss=lambda model, batch, weight=1.0: model)


def test_an_optimizer_of_another_model_is_a_usage_error(harness):
    """Nothing that the loss depends on would ever be stepped; one parameter of many without a gradient is no error."""
    other = nn.Linear(4, 1)
    with pytest.raises(ValueError, match="the loss has given a gradient to none of its parameters"):
        harness.train(setup_of(optimizer=torch.optim.SGD(other.parameters(), 0.1)), steps=2)
    setup = setup_of()
    both = torch.optim.SGD([*setup.model.parameters(), *other.parameters()], 0.1)
    harness.train(setup_of(setup.model, optimizer=both), steps=2)


def test_train_wants_a_setup(harness):
    """A bare model is not enough."""
    with pytest.raises(TypeError, match="setup must be a TrainingSetup"):
        harness.train(nn.Linear(1, 1))


def test_a_training_step_must_return_its_loss(harness):
    """A forgotten return is a usage error."""
    with pytest.raises(TypeError, match="training_step must return the loss"):
        harness.train(setup_of(training_step=print), steps=1)


def test_batches_that_run_out_are_a_usage_error(harness):
    """A generator object serves its batches once."""
    with pytest.raises(ValueError, match="ran out after 3 batches"):
        harness.train(setup_of(batches=iter(data())), steps=5)


def test_a_users_own_exception_comes_through(harness):
    """An IndexError of the loss stays an IndexError."""
    with pytest.raises(IndexError):
        harness.train(setup_of(loss=lambda m, b: m(b[7])), steps=2)


def test_a_precision_without_kernels_skips(harness):
    """torch's own words become the reason."""

    def loss(model, batch):
        raise NotImplementedError("\"fancy\" not implemented for 'Half'")

    with pytest.raises(pytest.skip.Exception, match="16-true does not apply"):
        harness.train(setup_of(loss=loss), precision="16-true")


# --- search


class ColumnScaler(nn.Module):
    """Divides by the columns' deviation: breaks on a batch with a constant column, and on nothing else."""

    def __init__(self, eps):
        super().__init__()
        self.layer, self.eps = nn.Linear(4, 1), eps

    def forward(self, x):
        return self.layer((x - x.mean(0)) / (x.std(0, unbiased=False) + self.eps))


def test_search_finds_the_constant_column_and_restores_everything(harness):
    """Grade and batch are told; model, optimizer and random states are bit for bit what they were."""
    model = ColumnScaler(0.0)
    setup = setup_of(model, optimizer=AdamW(model.parameters(), 1e-3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    found = harness.search(setup, seconds=5, evaluations=80)
    assert found is not None
    assert found.evidence["grade"] == "fresh model"
    assert found.evidence["batch_description"]
    assert "for a legal batch" in found.message
    assert str(found).startswith(f"{found.message}\n")
    assert "grade     fresh model" in str(found)
    assert any("domain inferred" in note for note in harness.notes)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert setup.optimizer.state == {}
    assert torch.equal(random_state, torch.get_rng_state())


def test_search_finds_nothing_in_the_repaired_twin(harness):
    """The same layer with an eps survives every batch of its domain."""
    bounded = TensorSpec(shape=("batch", 4), min_value=-3, max_value=3)
    target = TensorSpec(shape=("batch", 1), min_value=-3, max_value=3)
    setup = setup_of(ColumnScaler(1e-3), domain=(bounded, target))
    assert harness.search(setup, evaluations=120, seconds=20) is None


def test_search_grades_typical_data(harness):
    """A model that breaks on the user's own batches needs no adversary."""
    setup = setup_of(loss=lambda m, b: m(b[0]).mean() * float("inf"))
    assert harness.search(setup, evaluations=5).evidence["grade"] == "typical data"


def test_search_leaves_a_float64_model_in_its_own_dtype(harness):
    """Nothing is cast, so that everything can be put back."""
    model = perceptron().double()
    batches = [(x.double(), y.double()) for x, y in data()]
    setup = setup_of(model, batches=batches)
    before = [parameter.clone() for parameter in model.parameters()]
    assert harness.search(setup, evaluations=6) is None
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_search_tries_scaled_weights_last(harness):
    """exp of a logit overflows only for weights 32 times the fresh ones."""

    def loss(model, batch):
        return model(batch[0]).exp().exp().mean()

    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    with torch.no_grad():
        model.weight.fill_(0.05)
        model.bias.zero_()
    bounded = TensorSpec(shape=(8, 4), min_value=-2, max_value=2)
    setup = setup_of(model, loss=loss, optimizer=SGD(model.parameters(), 1e-6), domain=(bounded, bounded))
    assert harness.search(setup, evaluations=100, seconds=20).evidence["grade"] == "scaled weights"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"seconds": 0}, ValueError),
        ({"seconds": "1"}, TypeError),
        ({"seconds": float("nan")}, ValueError),
        ({"evaluations": 0}, ValueError),
        ({"evaluations": 1.5}, TypeError),
    ],
)
def test_search_refuses_wrong_budgets(harness, arguments, error):
    """A budget is positive and finite."""
    with pytest.raises(error):
        harness.search(setup_of(), **arguments)


def test_search_without_anything_to_vary_skips(harness):
    """Batches of text tell no domain."""
    model = nn.Linear(1, 1)
    setup = setup_of(model, loss=lambda m, _: m(torch.ones(1, 1)).mean(), batches=[["a text"]])
    with pytest.raises(pytest.skip.Exception, match="hold no float or int tensor"):
        harness.search(setup, evaluations=3)
