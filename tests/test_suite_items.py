"""Suites through a real pytest: ids, one shared training, who fails and who skips, healthy and broken models."""

from __future__ import annotations

import sys

import hypothesis  # noqa: F401 - see `loaded`
import pytest
import torch

from pytest_nanstab.batches import drawing  # noqa: F401
from pytest_nanstab.checks import init_scale  # noqa: F401
from pytest_nanstab.search import hunts  # noqa: F401
from pytest_nanstab.suite import checks, fixture  # noqa: F401
from pytest_nanstab.suite.spec import CHECKS

PRELUDE = """
import pytest, torch
from torch import nn
from torch.optim import SGD, Adam, AdamW
from pytest_nanstab import NonFiniteError, TrainingSetup, stability_suite
from pytest_nanstab.strategies import TensorSpec

def data(rows=8, count=3):
    x = [torch.randn(rows, 4) for _ in range(count)]
    return [(row, row.sum(1, keepdim=True)) for row in x]

def mse(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()

def setup_of(model=None, **changes):
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1)) if model is None else model
    given = {"model": model, "loss": mse, "optimizer": SGD(model.parameters(), 0.05), "batches": data()}
    return TrainingSetup(**{**given, **changes})
"""
TRAINING = '"finite_steps", "finite_eval", "gradient_bounds", "headroom"'


@pytest.fixture(scope="module", autouse=True)
def loaded():
    """Load in this process what an inner run would load: pytester forgets modules, and torch cannot be loaded twice."""
    weight = torch.nn.Parameter(torch.ones(1))
    for optimizer in (torch.optim.SGD, torch.optim.Adam, torch.optim.LBFGS):
        optimizer([weight]).step(lambda: weight.detach().sum())


@pytest.fixture
def run(pytester):
    """Run a suite file in this process; the outcome of each item is in `run.outcomes`."""

    class Runner:
        def __init__(self):
            self.result = None

        def __call__(self, body, *arguments, **files):
            pytester.makepyfile(test_it=PRELUDE + body, **files)
            return self.again(*arguments)

        def again(self, *arguments):
            options = ("-p", "no:randomly", "-W", "error", "-rA", *arguments)
            self.result = pytester.runpytest_inprocess(*options)
            return self.result

        @property
        def outcomes(self):
            """The outcome of every item by its name."""
            found = {}
            for line in self.result.outlines:
                word, _, rest = line.partition(" ")
                if word in ("PASSED", "FAILED", "ERROR", "XFAIL", "XPASS") and "::" in rest:
                    found[rest.split("::", 1)[1].split(" - ")[0]] = word.lower()
            return found

        @property
        def text(self):
            return self.result.stdout.str()

    return Runner()


# --- items and their ids


def test_ids_and_their_order(run, pytester):
    """Checks that do not depend on precision come once and first; the rest precision by precision."""
    result = run(
        """
@stability_suite(precision=["32-true", "bf16-mixed"])
def test_gpt():
    return setup_of()
""",
        "--collect-only",
        "-q",
    )
    names = [line.split("::")[1] for line in result.outlines if "::" in line]
    each = [check for check in CHECKS if check not in ("init_scale", "finite_data")]
    assert names == [
        "test_gpt[init_scale]",
        "test_gpt[finite_data]",
        *[f"test_gpt[{check}-{precision}]" for precision in ("32-true", "bf16-mixed") for check in each],
    ]


def test_parametrize_follows_above_and_below(run):
    """The user's own parameters come after the case, whichever decorator is on top; fixtures are passed on."""
    run(
        """
@pytest.fixture(params=["a", "b"])
def letter(request):
    return request.param

@pytest.mark.parametrize("width", [pytest.param(4, id="small"), pytest.param(8, id="large")])
@stability_suite(checks="finite_steps", steps=2)
def test_above(width, tmp_path):
    assert tmp_path.exists()
    return setup_of(nn.Sequential(nn.Linear(4, width), nn.Linear(width, 1)))

@stability_suite(checks="finite_steps", steps=2)
@pytest.mark.parametrize("width", [4], ids=["small"])
def test_below(letter, width):
    assert letter in "ab"
    return setup_of()
"""
    )
    assert run.outcomes == {
        "test_above[finite_steps-32-true-small]": "passed",
        "test_above[finite_steps-32-true-large]": "passed",
        "test_below[finite_steps-32-true-a-small]": "passed",
        "test_below[finite_steps-32-true-b-small]": "passed",
    }


def test_methods_of_classes(run):
    """A suite may be a method; a parametrized class works too."""
    run(
        """
@pytest.mark.parametrize("width", [4, 8])
class TestModels:
    @stability_suite(checks=["finite_steps", "headroom"], steps=2)
    def test_net(self, width):
        assert isinstance(self, TestModels)
        return setup_of(nn.Sequential(nn.Linear(4, width), nn.Linear(width, 1)))
"""
    )
    assert run.outcomes == {
        f"TestModels::test_net[{check}-32-true-{width}]": "passed"
        for check in ("finite_steps", "headroom")
        for width in (4, 8)
    }


def test_items_are_selected_like_any_other(run, pytester):
    """-k, -m nanstab, a full id and --lf choose items."""
    body = """
@stability_suite(steps=3, precision=["32-true", "64-true"], max_grad_norm=1e-9)
def test_net():
    return setup_of()

def test_other():
    pass
"""
    run(body, "-k", "headroom and 64-true")
    assert run.outcomes == {"test_net[headroom-64-true]": "passed"}
    run.again("-m", "nanstab", "-k", "not adversarial")
    assert len(run.outcomes) == 10
    assert "test_other" not in run.outcomes
    failed = {name: word for name, word in run.outcomes.items() if word == "failed"}
    assert set(failed) == {"test_net[gradient_bounds-32-true]", "test_net[gradient_bounds-64-true]"}
    run.again("--lf")
    assert run.outcomes == failed
    run.again("test_it.py::test_net[finite_steps-64-true]")
    assert run.outcomes == {"test_net[finite_steps-64-true]": "passed"}


@pytest.mark.slow
def test_two_workers_agree_with_one(run, pytester):
    """Under xdist each worker trains for itself and the verdicts are the same."""
    body = f"""
@stability_suite(steps=3, checks=[{TRAINING}], max_loss=1e-9)
def test_net():
    return setup_of()
"""
    pytester.makepyfile(test_it=PRELUDE + body)
    result = pytester.runpytest_subprocess("-n", "2", "-p", "no:randomly")
    result.assert_outcomes(passed=3, failed=1)


def test_a_method_of_unittest_is_refused(run):
    """pytest cannot expand it, so it would pass unchecked: it fails and says why."""
    run(
        """
import unittest

class TestOld(unittest.TestCase):
    @stability_suite()
    def test_net(self):
        return setup_of()
"""
    )
    run.result.assert_outcomes(failed=1)
    run.result.stdout.fnmatch_lines("*not on methods of unittest.TestCase*")


# --- healthy models


HEALTHY = {
    "plain": "return setup_of()",
    "batch norm and dropout": """
    model = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1))
    return setup_of(model, optimizer=AdamW(model.parameters(), 1e-3), clip_grad_norm=1.0)""",
    "lbfgs": """
    model = nn.Linear(4, 1)
    return setup_of(model, optimizer=torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4))""",
    "tied and frozen": """
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 1))
    model[2].weight = model[0].weight
    model[3].requires_grad_(False)
    return setup_of(model, optimizer=SGD([p for p in model.parameters() if p.requires_grad], 0.01))""",
    "causal mask": """
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 1)

        def forward(self, x):
            q, k, v = self.qkv(x.unsqueeze(0)).chunk(3, -1)
            scores = q @ k.transpose(-1, -2) / 2
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
            return self.out(torch.softmax(scores.masked_fill(mask, float("-inf")), -1) @ v)[0]

    return setup_of(Attention())""",
    "two optimizers in a training_step": """
    generator, critic = nn.Linear(2, 4), nn.Linear(4, 1)
    model = nn.ModuleDict({"generator": generator, "critic": critic})
    first, second = SGD(generator.parameters(), 0.01), Adam(critic.parameters(), 1e-3)
    bce = nn.functional.binary_cross_entropy_with_logits

    def training_step(batch):
        fake = generator(torch.randn(len(batch[0]), 2))
        second.zero_grad()
        ones, zeros = torch.ones(len(fake), 1), torch.zeros(len(fake), 1)
        (bce(critic(batch[0]), ones) + bce(critic(fake.detach()), zeros)).backward()
        second.step()
        first.zero_grad()
        loss = bce(critic(fake), ones)
        loss.backward()
        first.step()
        return loss

    def loss(model, batch):
        return bce(model["critic"](batch[0]), torch.ones(len(batch[0]), 1))

    return setup_of(model, optimizer=[first, second], training_step=training_step, loss=loss)""",
    "declared domain": """
    wide = TensorSpec(shape=("batch", 4), min_value=-100, max_value=100)
    target = TensorSpec(shape=("batch", 1), min_value=-100, max_value=100)
    return setup_of(domain=(wide, target), sizes={"batch": (1, 16)})""",
    "repair": """
    def repair(batch):
        return batch[0], batch[0].sum(1, keepdim=True)
    def loss(model, batch):
        assert torch.allclose(batch[0].sum(1, keepdim=True), batch[1])
        return mse(model, batch)
    return setup_of(loss=loss, repair=repair)""",
}


@pytest.mark.parametrize("body", HEALTHY.values(), ids=HEALTHY)
def test_healthy_models_pass_every_check(run, body):
    """No item of a healthy suite fails, warns or complains about the returned setup."""
    run(f"@stability_suite(steps=14)\ndef test_net():\n    {body.strip()}\n")
    run.result.assert_outcomes(passed=7)


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed", "16-mixed"])
def test_a_healthy_model_passes_in_every_precision(run, precision):
    """Casting, autocast and loss scaling make no finding of their own."""
    run(
        f"""
@stability_suite(steps=12, precision={precision!r})
def test_net():
    return setup_of(clip_grad_norm=1.0)
"""
    )
    run.result.assert_outcomes(passed=7)


# --- one training for many items


def test_items_share_one_training(run, pytester):
    """The factory runs once per precision and seed for the items that read the training, and anew for the others."""
    run(
        """
import pathlib

@stability_suite(steps=3, precision=["32-true", "64-true"], seeds=2)
def test_net():
    with pathlib.Path("calls").open("a") as calls:
        print("call", file=calls)
    return setup_of()
"""
    )
    run.result.assert_outcomes(passed=12)
    once_per_seed = 2 * 2  # init_scale and finite_data
    assert (pytester.path / "calls").read_text().count("call") == once_per_seed + 2 * 2


def test_trainings_are_released_when_their_last_item_has_run(run):
    """Nothing is held at the end of the session, nor from one group to the next."""
    run(
        f"""
@pytest.mark.parametrize("width", [4, 8])
@stability_suite(steps=2, checks=[{TRAINING}])
def test_net(width):
    return setup_of()
""",
        conftest="""
def pytest_runtest_logfinish(nodeid):
    pass

def pytest_sessionfinish(session):
    from pytest_nanstab.suite import shared
    print("held:", len(session.config.stash[shared._STORE].groups))
""",
    )
    assert "held: 0" in run.text


def test_evaluation_uses_the_fixtures_while_they_live(run):
    """A fixture that closes what the factory returned does not break the items that come after."""
    run(
        f"""
@pytest.fixture
def loader():
    batches = data()
    yield lambda: list(batches)
    batches.clear()

@stability_suite(steps=3, checks=[{TRAINING}])
def test_net(loader):
    return setup_of(batches=loader)
"""
    )
    run.result.assert_outcomes(passed=4)


def test_random_states_come_back_after_an_item(run):
    """A suite draws from no generator that a later test reads."""
    run(
        """
import random

@pytest.fixture(scope="module", autouse=True)
def state():
    return torch.get_rng_state(), random.getstate()

@stability_suite(steps=2)
def test_net():
    return setup_of()

def test_after(state):
    assert torch.equal(torch.get_rng_state(), state[0]) and random.getstate() == state[1]
    assert torch.get_default_dtype() == torch.float32
"""
    )
    assert run.outcomes["test_after"] == "passed"


# --- who fails and who skips


LOG_SOFTMAX = """
def loss(model, batch):
    return -torch.log(torch.softmax(model(batch[0]) * 500, -1))[:, 0].mean()

@stability_suite(steps=5{arguments})
def test_net():
    return setup_of(nn.Linear(4, 3), loss=loss)
"""


def test_the_owner_fails_and_the_others_point_to_it(run):
    """NaN in training is finite_steps' fault; items that need the trained model skip with its name."""
    run(LOG_SOFTMAX.format(arguments=""))
    run.result.assert_outcomes(passed=2, failed=1, skipped=4)
    assert run.outcomes["test_net[finite_steps-32-true]"] == "failed"
    assert "training stopped at step 1: see test_net[[]finite_steps-32-true[]]".replace("[[]", "[").replace(
        "[]]", "]"
    ) in (run.text)


def test_without_the_owner_the_others_fail_themselves(run):
    """Deselected, or skipped by a mark, the owner tells nobody: the fault must not vanish."""
    run(LOG_SOFTMAX.format(arguments=""), "-k", "finite_eval or headroom")
    run.result.assert_outcomes(failed=2, deselected=5)
    marked = ', checks=[pytest.param("finite_steps", marks=pytest.mark.skip), "gradient_bounds", "adversarial_batches"]'
    run(LOG_SOFTMAX.format(arguments=marked))
    run.result.assert_outcomes(failed=2, skipped=1)
    run(LOG_SOFTMAX.format(arguments=marked.replace("mark.skip", "mark.xfail(run=False)")))
    run.result.assert_outcomes(failed=2, xfailed=1)
    run(LOG_SOFTMAX.format(arguments=', checks="finite_eval"'))
    run.result.assert_outcomes(failed=1)


def test_a_known_instability_of_one_precision(run):
    """A strict xfail on one precision: its owner xfails, its other items skip, the good precision passes."""
    run(
        """
class Squares(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, x):
        return self.layer(x) + ((x * 300) ** 2).mean() * 1e-6

@stability_suite(
    steps=3,
    checks=["finite_steps", "finite_eval", "gradient_bounds", "headroom"],
    precision=[
        "32-true",
        pytest.param("16-true", marks=pytest.mark.xfail(raises=NonFiniteError, strict=True, reason="squares")),
    ],
)
def test_net():
    return setup_of(Squares())
"""
    )
    run.result.assert_outcomes(passed=4, xfailed=1, skipped=3)


def test_bad_data_belongs_to_finite_data(run):
    """A NaN in a batch fails finite_data; finite_steps points to it, and fails itself without it."""
    body = """
@stability_suite(steps=5)
def test_net():
    batches = data()
    batches[1][0][2, 3] = float("nan")
    return setup_of(batches=batches)
"""
    run(body)
    assert {name: word for name, word in run.outcomes.items() if word == "failed"} == {
        "test_net[finite_data]": "failed",
    }
    run.result.assert_outcomes(passed=1, failed=1, skipped=5)
    run(body, "-k", "finite_steps")
    assert run.outcomes == {"test_net[finite_steps-32-true]": "failed"}
    run(body.replace("batches=batches", "batches=lambda: batches"))
    failed = [name for name, word in run.outcomes.items() if word == "failed"]
    assert failed == ["test_net[finite_data]", "test_net[finite_steps-32-true]"]


def test_bad_evaluation_data_belongs_to_finite_data(run):
    """The evaluation item points to it; with a stream, which may differ next time, it fails too."""
    body = """
@stability_suite(steps=2, checks=["finite_data", "finite_eval"])
def test_net():
    batches = data()
    batches[2][1][0] = float("inf")
    return setup_of(eval_batches=SOURCE)
"""
    run(body.replace("SOURCE", "batches"))
    run.result.assert_outcomes(failed=1, skipped=1)
    assert "non-finite data: see test_net[finite_data]" in run.text
    run(body.replace("SOURCE", "lambda: batches"))
    run.result.assert_outcomes(failed=2)
    assert "NaN or Inf in evaluation batch 3" in run.text


def test_an_endless_stream_of_batches_ends_somewhere(run):
    """A generator function without end trains and evaluates."""
    run(
        """
def stream():
    while True:
        yield torch.ones(2, 4), torch.ones(2, 1)

@stability_suite(steps=2, checks=["finite_steps", "finite_eval"])
def test_net():
    return setup_of(batches=stream)
"""
    )
    run.result.assert_outcomes(passed=2)


def test_a_users_exception_is_raised_by_the_item_that_owns_the_training(run):
    """The traceback ends in the user's own line, once, and says which batch it was; the other items point there."""
    body = f"""
def loss(model, batch):
    loss.calls = getattr(loss, "calls", 0) + 1
    if loss.calls == 3:
        raise IndexError("token 9 of 8")
    return mse(model, batch)

@stability_suite(steps=5, checks=[{TRAINING}])
def test_net():
    return setup_of(loss=loss)
"""
    run(body, "-rs")
    run.result.assert_outcomes(failed=1, skipped=3)
    assert run.text.count('raise IndexError("token 9 of 8")') == 1
    assert "training raised IndexError: see test_net[finite_steps-32-true]" in run.text
    assert sys.version_info < (3, 11) or "in step 3 of 5, with batch 3" in run.text
    assert "pytest_nanstab" not in run.text.split("FAILURES")[1].split("short test summary")[0]
    run(body, "-k", "headroom or gradient_bounds")
    run.result.assert_outcomes(failed=2)


def test_a_traceback_shows_only_the_users_frames(run):
    """Also when the loss lives in another file than the test."""
    run(
        f"""
from losses import broken

@stability_suite(steps=5, checks=[{TRAINING}])
def test_net():
    return setup_of(loss=broken)
""",
        "-k",
        "finite_steps or headroom",
        losses="def broken(model, batch):\n    return batch[7]\n",
    )
    run.result.assert_outcomes(failed=1, skipped=1)
    assert run.text.count("losses.py:2: IndexError") == 1
    for ours in ("driver.py", "checks.py", "shared.py", "contextlib.py"):
        assert ours not in run.text


def test_a_factory_must_return_a_setup(run):
    """A forgotten return is told by name."""
    run("@stability_suite(steps=2)\ndef test_net():\n    setup_of()\n")
    run.result.assert_outcomes(failed=3, skipped=4)
    run.result.stdout.fnmatch_lines(["test_net must return a TrainingSetup, got None*", "", "test_it.py:*: TypeError"])


def test_a_wrong_setup_is_told_in_a_sentence(run):
    """Where no code of the user's was running, the factory's line stands in for a traceback of ours."""
    run(
        """
@stability_suite(steps=2, checks=["finite_steps"])
def test_net(): return setup_of(loss=lambda m, b: mse(m, b).item())

@stability_suite(steps=4, checks=["finite_steps"])
def test_stream(): return setup_of(batches=iter(data()))
"""
    )
    lines = run.text.splitlines()
    assert "All traceback entries are hidden" not in run.text
    assert "Traceback" not in run.text
    ran_out = "batches is a one-shot iterator and ran out after 3 batches; pass a list, a DataLoader or a function"
    told = lines.index(ran_out)
    assert lines[told + 1] == ""
    assert lines[told + 2].startswith("test_it.py:")
    assert lines[told + 2].endswith(": ValueError")
    assert any(line.startswith("loss must return the loss as a scalar tensor, got ") for line in lines)


def test_an_error_of_the_users_keeps_its_traceback(run):
    """It is theirs to read."""
    run(
        """
def lookup(batch): return {}["weights"]

@stability_suite(steps=2, checks=["finite_steps"])
def test_net(): return setup_of(loss=lambda m, b: mse(m, b) * int(lookup(b) or "x"))

@stability_suite(steps=2, checks=["finite_steps"])
def test_int(): return setup_of(loss=lambda m, b: mse(m, b) * int("x"))
"""
    )
    assert "KeyError: 'weights'" in run.text
    assert "invalid literal for int() with base 10: 'x'" in run.text
    assert ">   def lookup(batch)" in run.text
    assert ">   def test_int()" in run.text


def test_a_factory_may_skip(run):
    """pytest.skip in the factory skips every item."""
    run("@stability_suite(steps=2)\ndef test_net():\n    pytest.skip('no data here')\n")
    run.result.assert_outcomes(skipped=7)


def test_several_seeds(run):
    """One bad seed fails the item, which says how many of how many and which."""
    run(
        """
@stability_suite(steps=3, seeds=5, checks=["finite_steps", "finite_eval"])
def test_net():
    bad = torch.initial_seed() in (1, 3)
    return setup_of(loss=lambda m, b: mse(m, b) * (float("nan") if bad else 1))
"""
    )
    assert run.outcomes["test_net[finite_steps-32-true]"] == "failed"
    assert run.outcomes["test_net[finite_eval-32-true]"] == "passed"
    assert "(2 of 5 seeds)" in run.text
    assert "2 of 5 fail: 1, 3" in run.text


# --- broken models, one check each


BROKEN = {
    "init_scale": """
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    for layer in (model[0], model[2]):
        nn.init.normal_(layer.weight)
    x = torch.randn(16, 64)
    return setup_of(model, optimizer=SGD(model.parameters(), 1e-6), batches=[(x, x[:, :1])])""",
    "finite_steps": """
    model = nn.Linear(4, 1)
    return setup_of(model, optimizer=SGD(model.parameters(), 1e6))""",
    "finite_eval": """
    class EvalBranch(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def forward(self, x):
            x = self.layer(x)
            return x if self.training else x / x.sub(x).abs().sum() - x / x.sub(x).abs().sum()

    return setup_of(EvalBranch())""",
    "adversarial_batches": """
    class ColumnScaler(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def forward(self, x):
            return self.layer((x - x.mean(0)) / x.std(0, unbiased=False))

    return setup_of(ColumnScaler())""",
}


@pytest.mark.parametrize("check", BROKEN)
def test_a_broken_model_fails_the_check_that_owns_it(run, check):
    """One fault, one failing item: nothing else of the suite fails."""
    scheme = ", init_scale='kaiming_normal'" if check == "init_scale" else ""
    run(f"@stability_suite(steps=40{scheme})\ndef test_net():\n    {BROKEN[check].strip()}\n")
    failed = [name for name, word in run.outcomes.items() if word == "failed"]
    suffix = "" if check == "init_scale" else "-32-true"
    assert failed == [f"test_net[{check}{suffix}]"]


def test_adam_without_eps(run):
    """0 / 0 in the optimizer is finite_steps' and names the parameter."""
    run(
        """
@stability_suite(steps=3, checks="finite_steps")
def test_net():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    with torch.no_grad():
        model[0].bias.fill_(-100)
    return setup_of(model, optimizer=Adam(model.parameters(), 1e-3, eps=0))
"""
    )
    assert run.outcomes == {"test_net[finite_steps-32-true]": "failed"}
    assert "0.weight" in run.text or "0.bias" in run.text


def test_a_stuck_parameter_fails_gradient_bounds(run):
    """bfloat16 weights that a tiny rate never changes: a gradient, a rate, and no bit moves."""
    run(
        f"""
@stability_suite(steps=12, precision="bf16-true", checks=[{TRAINING}])
def test_net():
    model = nn.Linear(4, 1)
    return setup_of(model, optimizer=SGD(model.parameters(), 1e-7))
"""
    )
    run.result.assert_outcomes(passed=3, failed=1)
    assert run.outcomes["test_net[gradient_bounds-bf16-true]"] == "failed"
    assert "bfloat16 drops updates smaller than 0.4 % of a weight" in " ".join(run.text.split())


def test_a_group_whose_rate_is_0_is_told(run):
    """It fails nothing, since it may be meant."""
    run(
        """
def halves(rate):
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": rate}]
    return setup_of(model=model, optimizer=torch.optim.SGD(groups, lr=0.01))

@stability_suite(steps=12, checks=["gradient_bounds"])
def test_still(): return halves(0.0)

@stability_suite(steps=12, checks=["gradient_bounds"])
def test_moving(): return halves(1e-3)
""",
        "-v",
    )
    run.result.assert_outcomes(passed=2)
    told = "has gradients, and its learning rate was 0 at every step: 2.weight and 1 more"
    assert " ".join(run.text.split()).count(told) == 1


def test_a_bias_in_front_of_batch_norm_is_not_stuck(run):
    """Its gradient is zero but for rounding: that no step changes it is no fault."""
    run(
        """
@stability_suite(steps=14, precision=["32-true", "bf16-true"], checks="gradient_bounds")
def test_net():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
    return setup_of(model, optimizer=SGD(model.parameters(), 0.02))
"""
    )
    run.result.assert_outcomes(passed=2)


def test_growing_gradients_fail_gradient_bounds(run):
    """A run that diverges but does not reach infinity yet: a thousandfold growth is called an explosion."""
    run(
        f"""
@stability_suite(steps=16, checks=[{TRAINING}])
def test_net():
    model = nn.Linear(4, 1)
    return setup_of(model, optimizer=SGD(model.parameters(), 4.0))
"""
    )
    assert run.outcomes["test_net[gradient_bounds-32-true]"] == "failed"
    assert "gradient norm grew" in run.text


def test_limits_of_the_call_the_marker_and_the_ini_file(run, pytester):
    """Limits merge field by field, belong to their check, and say where they come from."""
    pytester.makeini("[pytest]\nnanstab_max_loss = 1e-9\n")
    run(
        f"""
@pytest.mark.nanstab(min_headroom_bits=1000)
@stability_suite(steps=3, checks=[{TRAINING}])
def test_net():
    return setup_of()

@stability_suite(steps=3, checks=[{TRAINING}], max_loss=None)
def test_free():
    return setup_of()
"""
    )
    failed = [name for name, word in run.outcomes.items() if word == "failed"]
    assert failed == ["test_net[gradient_bounds-32-true]", "test_net[headroom-32-true]"]


# --- sound programs that need more than one loss and one pass


def test_a_loss_that_differentiates_is_evaluated(run):
    """The residual of an equation needs gradients in evaluation, too."""
    run(
        """
def residual(model, batch):
    x = batch[0].clone().requires_grad_()
    (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    return (slope - 1).square().mean()

def nan_at_test_time(model, batch):
    value = residual(model, batch)
    return value if model.training else value * float("nan")

@stability_suite(steps=3, checks=["finite_steps", "finite_eval"])
def test_equation():
    return setup_of(loss=residual)

@stability_suite(steps=3, checks=["finite_steps", "finite_eval"])
def test_control():
    return setup_of(loss=nan_at_test_time)
"""
    )
    failed = [name for name, word in run.outcomes.items() if word == "failed"]
    assert failed == ["test_control[finite_eval-32-true]"]


def test_what_a_second_loss_trains_is_not_cut_off(run):
    """`loss` is the critic's, with the generator detached; the training step has another one for the generator."""
    run(
        """
class Gan(nn.Module):
    def __init__(self):
        super().__init__()
        self.g, self.d = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)), nn.Linear(4, 1)

def critic(gan, batch):
    return (gan.d(gan.g(batch[0]).detach()) - gan.d(batch[0])).square().mean()

@stability_suite(steps=12, checks="gradient_bounds")
@pytest.mark.parametrize("generator_learns", [True, False])
def test_gan(generator_learns):
    gan = Gan()
    first, second = SGD(gan.d.parameters(), 0.01), SGD(gan.g.parameters(), 0.01)

    def step(batch):
        losses = [(first, critic)]
        if generator_learns:
            losses.append((second, lambda gan, batch: gan.d(gan.g(batch[0])).square().mean()))
        for optimizer, loss in losses:
            optimizer.zero_grad()
            value = loss(gan, batch)
            value.backward()
            optimizer.step()
        return value

    return setup_of(gan, loss=critic, optimizer=[first, second], training_step=step)
"""
    )
    assert run.outcomes == {
        "test_gan[gradient_bounds-32-true-True]": "passed",
        "test_gan[gradient_bounds-32-true-False]": "failed",
    }


def test_equal_units_with_targets_of_their_own_are_no_fault(run):
    """An output layer and a table that is looked up may begin with equal rows; a hidden layer may not."""
    run(
        """
class Net(nn.Module):
    def __init__(self, equal):
        super().__init__()
        self.table, self.hidden, self.out = nn.Embedding(5, 4), nn.Linear(4, 8), nn.Linear(8, 3)
        nn.init.constant_(getattr(self, equal).weight, 0.2)

    def forward(self, tokens):
        return self.out(torch.tanh(self.hidden(self.table(tokens))))

@stability_suite(checks="init_scale")
@pytest.mark.parametrize("equal", ["table", "hidden", "out"])
def test_net(equal):
    batches = [(torch.randint(0, 5, (8,)), torch.randn(8, 3)) for _ in range(2)]
    return setup_of(Net(equal), batches=batches)
"""
    )
    assert run.outcomes == {
        "test_net[init_scale-table]": "passed",
        "test_net[init_scale-hidden]": "failed",
        "test_net[init_scale-out]": "passed",
    }


# --- adversarial batches


def test_the_weakest_grade_that_fails_can_be_set(run, pytester):
    """A find on the fresh model fails by default, and is only reported where nothing but typical data may fail."""
    pytester.makeini("[pytest]\nnanstab_fail_grade = typical data\n")
    run(
        f"""
@stability_suite(steps=3, checks="adversarial_batches")
def test_net():
    {BROKEN["adversarial_batches"].strip()}
"""
    )
    assert run.outcomes == {"test_net[adversarial_batches-32-true]": "passed"}


def test_a_find_tells_batch_and_grade(run):
    """The evidence describes the batch in words, says on which state it broke, and how to run it again."""
    run(
        f"""
@stability_suite(steps=3, checks="adversarial_batches")
def test_net():
    {BROKEN["adversarial_batches"].strip()}
"""
    )
    assert "fresh model" in run.text
    assert "for a legal batch" in run.text
    assert "float32[8, 4]: all 0" in run.text


EXPLODING = """
def exploding(model, batch):
    x, y = batch
    odds = torch.exp(model(x))
    return (odds - y).abs().mean()

@stability_suite(steps=3, checks="adversarial_batches")
def test_net():
    model = nn.Linear(4, 1)
    nn.init.constant_(model.weight, 0.5)
    nn.init.zeros_(model.bias)
    x = TensorSpec(shape=("batch", 4), min_value=0, max_value=2)
    y = TensorSpec(shape=("batch", 1), min_value=0, max_value=1)
    return TrainingSetup(
        model=model, loss=exploding, optimizer=SGD(model.parameters(), 1e-9),
        batches=[(torch.ones(8, 4), torch.ones(8, 1))], domain=(x, y), sizes={"batch": (2, 8)},
    )
"""


def test_the_whole_block_of_a_find_at_scaled_weights(run, monkeypatch):
    """Grade and factor first, the batch in words, the line, what overflowed."""
    monkeypatch.setenv("COLUMNS", "80")
    run(EXPLODING)
    lines = run.result.outlines
    first = next(index for index, line in enumerate(lines) if line.startswith("Inf in the loss"))
    last = next(index for index, line in enumerate(lines) if line.endswith(": NonFiniteError"))
    assert (
        "\n".join(lines[first : last + 1])
        == """\
Inf in the loss for a legal batch at 32x weights, born in exploding()

    test_it.py
      19 | def exploding(model, batch):
      20 |     x, y = batch
    > 21 |     odds = torch.exp(model(x))
      22 |     return (odds - y).abs().mean()
      23 |

  grade     scaled weights: fails from 32 times the trained weights
  phase     forward, seed 0, precision 32-true, cpu
  op        exp, float32[8, 1]: 8 of 8 values became inf, first at [0, 0]
            largest finite input 128, exp overflows float32 above 88.72
  data      [0] float32[8, 4]: all 2; [1] float32[8, 1]: all 1
  rows      0, 1, 2, 3, 4, 5, 6, 7
  chain     exp (inf) -> sub -> abs -> mean -> loss
  cause     exp of a large number overflows
  remedy    bound its argument (clamp, subtract the maximum) or stay in log
            space
  accept    nanstab_fail_grade = adversarial training in the ini file only
            reports it
  again     pytest "test_it.py::test_net[adversarial_batches-32-true]"

test_it.py:21: NonFiniteError"""
    )


def test_grades_beyond_training_can_be_left_to_be_reported(run, pytester):
    """The same find is a note where only what training reaches may fail."""
    pytester.makeini("[pytest]\nnanstab_fail_grade = trained model\n")
    run(EXPLODING, "-v")
    assert run.outcomes == {"test_net[adversarial_batches-32-true]": "passed"}
    assert "only reported, nanstab_fail_grade is 'trained model'" in " ".join(run.text.split())


def test_a_trained_state_breaks_where_the_fresh_one_holds(run):
    """The grade is 'trained model' when only training made the weakness."""
    run(
        """
class Drift(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.steps += 1
        scale = torch.where(self.steps > 3, 1.0, 0.0)
        return self.layer(x) * torch.exp(scale * x.abs().max().clamp(min=2.9) * 100 - scale * 290)

@stability_suite(steps=6, checks="adversarial_batches")
def test_net():
    batches = [(torch.rand(8, 4), torch.zeros(8, 1)) for _ in range(3)]
    wide = TensorSpec(shape=(8, 4), min_value=-9, max_value=9)
    target = TensorSpec(shape=(8, 1), min_value=0, max_value=0)
    model = Drift()
    return setup_of(model, batches=batches, domain=(wide, target), optimizer=SGD(model.parameters(), 1e-6))
"""
    )
    assert run.outcomes == {"test_net[adversarial_batches-32-true]": "failed"}
    assert "trained model" in run.text


def test_a_declared_legal_batch_must_be_accepted(run):
    """A batch of one in front of BatchNorm is the user's declaration against the user's model: an error, not a find."""
    run(
        """
def net():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))

wide = TensorSpec(shape=("batch", 4), min_value=-1, max_value=1)
target = TensorSpec(shape=("batch", 1), min_value=-1, max_value=1)

@stability_suite(steps=3, checks="adversarial_batches")
def test_one():
    return setup_of(net(), domain=(wide, target))

@stability_suite(steps=3, checks="adversarial_batches")
def test_two():
    return setup_of(net(), domain=(wide, target), sizes={"batch": (2, 8)})

@stability_suite(steps=3, checks="adversarial_batches")
def test_inferred():
    return setup_of(net())
"""
    )
    assert run.outcomes == {
        "test_one[adversarial_batches-32-true]": "failed",
        "test_two[adversarial_batches-32-true]": "passed",
        "test_inferred[adversarial_batches-32-true]": "passed",
    }
    run.result.stdout.fnmatch_lines("*ValueError: Expected more than 1 value per channel*")


def test_refusals_under_an_inferred_domain_are_counted(run):
    """The samples only suggest what is legal: a refused batch is a note, all of them refused is a skip."""
    run(
        """
def picky(model, batch):
    if batch[0].unique().numel() < 30:
        raise ValueError("too plain")
    return mse(model, batch)

def strict(model, batch):
    if not any(torch.equal(batch[0], known) for known in KNOWN):
        raise ValueError("never seen")
    return mse(model, batch)

KNOWN = []

@stability_suite(steps=3, checks="adversarial_batches")
def test_some():
    return setup_of(loss=picky)

@stability_suite(steps=3, checks="adversarial_batches")
def test_all():
    batches = data()
    KNOWN[:] = [batch[0] for batch in batches]
    return setup_of(loss=strict, batches=batches)
""",
        conftest="""
def pytest_runtest_teardown(item):
    from pytest_nanstab.suite.expand import RECORD
    print(item.stash[RECORD].notes)
""",
    )
    run.result.assert_outcomes(passed=1, skipped=1)
    assert "generated batches were refused: ValueError: too plain" in run.text
    assert "refused every batch" in run.text


def test_checks_that_do_not_apply_are_skipped_with_the_reason(run):
    """No parameters, no numbers, no kernel: each reason is told."""
    run(
        """
def loss(model, batch):
    return model(torch.ones(1, 4)).mean()

@stability_suite(steps=2, checks=["finite_data", "adversarial_batches"])
def test_text():
    return setup_of(loss=loss, batches=[["some text"]])

class Bare(nn.Module):
    def forward(self, x):
        return x

@stability_suite(steps=2, checks="init_scale")
def test_bare():
    return TrainingSetup(model=Bare(), loss=mse, optimizer=SGD([nn.Parameter(torch.ones(1))], 0.1), batches=data())

def half(model, batch):
    raise RuntimeError("\\"op_cpu\\" not implemented for 'Half'")

@stability_suite(steps=2, checks="finite_steps", precision="16-true")
def test_half():
    return setup_of(loss=half)
"""
    )
    run.result.assert_outcomes(skipped=4)
    for reason in ("no number in any", "hold no float or int tensor", "no weight matrix", "16-true does not apply"):
        assert reason in run.text


# --- what items leave for the reports


def test_the_record_of_an_item(run):
    """Check, precision, seed, limits and the run are stored on the item."""
    run(
        """
@stability_suite(steps=4, checks=["finite_steps", "gradient_bounds"], seed=3, max_grad_norm=1e-9)
def test_net():
    return setup_of()
""",
        conftest="""
def pytest_runtest_teardown(item):
    from pytest_nanstab.suite.expand import RECORD
    record = item.stash[RECORD]
    kinds = [finding.kind for finding in record.findings]
    print("record", record.check, record.precision, record.seed, dict(record.limits), record.run.steps, kinds)
""",
    )
    limits = "{'max_grad_norm': Limit(value=1e-09, source='call')}"
    assert f"record finite_steps 32-true 3 {limits} 4 []" in run.text
    assert f"record gradient_bounds 32-true 3 {limits} 4 ['limit']" in run.text


def test_the_output_of_a_vanishing_gradient(run):
    """Layer by layer, with the user's line, the steps before, cause and remedy, in 80 columns."""
    run(
        """
class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(9))
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        for layer in self.layers:
            x = torch.sigmoid(layer(x))
        return self.head(x)

@stability_suite(steps=12, checks="gradient_bounds")
def test_net():
    model = Deep()
    return setup_of(model, optimizer=SGD(model.parameters(), 0.01))
"""
    )
    block = run.text[run.text.index("the gradient vanishes") :]
    lines = [line for line in block.split("test_it.py:")[0].splitlines() if not line.lstrip().startswith("again")]
    assert all(len(line) <= 80 for line in lines[1:])
    run.result.stdout.re_match_lines(
        [
            r"the gradient vanishes: x0\.\d+ per layer, \S+ after \d, at layers\.0$",
            r" +> +\d+ \| +self\.layers = nn\.ModuleList\(nn\.Linear\(4, 4\) for _ in",
            r" +\| +range\(.*",
            r"  phase     backward, seed 0, precision 32-true, cpu$",
            r"  module    layers\.0$",
            r"  table     layer +signal +gradient +factor$",
            r" +layers\.0( +\S+){3}$",
            r"  way       \S+ back to layers\.0$",
            r"  factors   sigmoid x\S+, .*",
            r"  steps     step +loss +grad norm +update$",
            r" +1( +\S+){3}$",
            r" +…$",
            r" +12( +\S+){3}$",
            r"  cause     each sigmoid takes the gradient down x0\.\d+ against the signal: its$",
            r"  remedy    ReLU, LeakyReLU or ELU in place of sigmoid, residual connections, or$",
            r'  again     pytest "test_it\.py::test_net\[gradient_bounds-32-true\]"$',
            r"test_it\.py:\d+: StabilityError$",
        ]
    )


def test_the_init_call_is_named(run):
    """A weight that nothing explains is told with the line that wrote it, and what follows it in the graph."""
    run(
        """
def initialise(module):
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight)

@stability_suite(steps=2, checks="init_scale")
def test_net():
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    return setup_of(model.apply(initialise))
"""
    )
    run.result.stdout.re_match_lines(
        [
            r"init scale: 2\.weight enlarges the signal x\d\.\d+$",
            r"    > \d+ \|         nn\.init\.normal_\(module\.weight\)$",
            r"  table      layer +shape +scheme +expect +std +ratio +verdict$",
            r"  next       relu follows it \(3, .*",
            r"  remedy     init\.kaiming_normal_\(model\[2\]\.weight, nonlinearity='relu'\)$",
        ]
    )


def test_notes_stand_in_verbose_output_and_in_the_report(run, pytester):
    """Frozen parts and clips that never act fail nothing, and are told."""
    run(
        """
@stability_suite(steps=12, checks=["init_scale", "gradient_bounds"])
def test_net():
    model = nn.Sequential(nn.Linear(4, 8).requires_grad_(False), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    return setup_of(model, optimizer=SGD(model.parameters(), 0.01), clip_grad_norm=1e6)
""",
        "-v",
        "--nanstab-report=r.json",
    )
    run.result.assert_outcomes(passed=2)
    assert "frozen: 0.weight and 1 more" in run.text
    assert "clip_grad_norm_(1e+06) was never active in 12 calls" in run.text.replace("\n    ", " ")
    import json

    tests = json.loads(pytester.path.joinpath("r.json").read_text(encoding="utf-8"))["tests"]
    assert any("frozen: 0.weight and 1 more" in test["notes"] for test in tests)


def test_a_pass_that_cannot_be_observed_is_said(run):
    """A loss that works only inside its training_step: nothing is guessed, and a note says what was not judged."""
    run(
        """
@stability_suite(steps=12, checks="gradient_bounds")
def test_net():
    model, inside = nn.Linear(4, 1), []
    optimizer = SGD(model.parameters(), 0.01)

    def loss(model, batch):
        if not inside:
            raise RuntimeError("not in a step")
        return model(batch[0]).square().mean()

    def step(batch):
        inside.append(True)
        optimizer.zero_grad()
        value = loss(model, batch)
        value.backward()
        optimizer.step()
        inside.clear()
        return value

    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=BATCHES, training_step=step)
""".replace("BATCHES", "[(torch.randn(8, 4), None)]"),
        "-v",
    )
    run.result.assert_outcomes(passed=1)
    assert "no pass could be observed: RuntimeError: not in a step" in run.text.replace("\n    ", " ")
