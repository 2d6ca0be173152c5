"""Hugging Face's `Trainer` and Accelerate as they are: faults found at their step and line, healthy runs unchanged."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from plugin_runs import again
from watched import every_way, is_marked, kinds, raised, sampled, zero_change

from pytest_nanstab import StabilityError, watch

MISSING = [name for name in ("transformers", "accelerate") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"needs {MISSING}"),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.slow,  # importing them takes seconds
]
PROGRAMS = Path(__file__).parent / "programs_transformers.py"


@pytest.fixture(scope="module")
def p():
    """The programs: imported late, because collecting should not take as long as importing transformers."""
    return pytest.importorskip("programs_transformers", exc_type=ImportError)  # torch may be too old for it


at_word = partial(is_marked, PROGRAMS)


def logged(trained, name):
    return [entry[name] for entry in trained.state.log_history if name in entry]


SETTINGS = {
    "plain": {},
    "unclipped": {"max_grad_norm": 0.0},
    "accumulated": {"gradient_accumulation_steps": 2},
    "bf16": {"bf16": True},
    "smoothed": {"label_smoothing_factor": 0.1},
    "unfiltered": {"logging_nan_inf_filter": False},
    "adafactor": {"optim": "adafactor"},
    "checkpointed": {"gradient_checkpointing": True},
}
every_setting = pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)


@every_setting
@pytest.mark.parametrize("region", [watch, zero_change])
def test_a_healthy_run_stays_as_it_was(p, setting, region):
    """Logged losses and norms, parameters and random numbers to the last bit; the run's norms are the logged ones."""

    def once(context):
        model = p.bert()
        with context as watched:
            trained = p.train(model, **setting)
        return model, trained, getattr(watched, "run", watched), torch.random.get_rng_state()

    plain, plainly, _, state = once(contextlib.nullcontext())
    model, trained, run, watched_state = once(region())
    assert torch.equal(state, watched_state)
    assert logged(plainly, "loss") == logged(trained, "loss")
    assert logged(plainly, "grad_norm") == logged(trained, "grad_norm")
    assert all(map(torch.equal, plain.parameters(), model.parameters()))
    assert run.findings == []
    assert run.steps == trained.state.global_step == len(run.loss)
    norms = logged(trained, "grad_norm")
    if norms and setting != SETTINGS["unclipped"]:
        assert run.grad_norm == pytest.approx(norms, rel=1e-4)
        assert run.clipped_grad_norm == pytest.approx([min(norm, 1.0) for norm in norms], rel=1e-3)


def test_a_language_model(p):
    """GPT-2 computes its own loss; the norms are those that the trainer logs."""
    with watch() as run:
        trained = p.train(p.gpt(), p.sentences(labels="next"))
    assert run.grad_norm == pytest.approx(logged(trained, "grad_norm"), rel=1e-4)
    assert run.loss == pytest.approx(logged(trained, "loss"), rel=1e-3)
    assert run.findings == []


# With label smoothing the trainer computes the loss by itself.
@pytest.mark.parametrize("ask", [raised, sampled])
@pytest.mark.parametrize("setting", [SETTINGS[name] for name in SETTINGS if name != "smoothed"])
@pytest.mark.parametrize("fault", ["forward", "backward"])
def test_a_model_that_breaks(p, ask, setting, fault):
    """The operation in the user's own `forward`, at the trainer's step; the trainer's filter of NaN hides nothing."""
    every = setting.get("gradient_accumulation_steps", 1)
    (finding,) = ask(lambda: p.train(p.bert(fault), **setting))[:1]
    assert finding.kind == ("nonfinite-loss" if fault == "forward" else "nonfinite-gradient")
    assert finding.step == 3 // every + 1
    # A derivative inside a checkpoint takes a rerun: the model is not called again on the spot, `test_sessions` has it.
    if (setting, fault) != (SETTINGS["checkpointed"], "backward"):
        assert at_word(finding, "culprit")
        assert finding.op is not None


@every_way
def test_compute_loss(p, ask):
    """A loss of the user's own in a subclass of the trainer."""
    (finding,) = ask(lambda: p.own_loss("compute_loss"))[:1]
    assert (finding.kind, finding.step) == ("nonfinite-loss", 4)
    assert at_word(finding, "culprit")
    assert ask(lambda: p.own_loss()) == []


@every_way
def test_a_nan_only_in_evaluation(p, ask):
    """`Trainer.evaluate` alone, and at the end of an epoch."""

    def body(fault):
        p.train(p.bert(fault), evaluated=p.sentences(8), eval_strategy="epoch")

    (finding,) = ask(lambda: body("validation"))[:1]
    assert (finding.kind, finding.phase) == ("nonfinite-output", "eval")
    assert at_word(finding, "culprit")
    assert ask(lambda: body(None)) == []
    (finding,) = ask(lambda: p.trainer(p.bert("validation"), evaluated=p.sentences(8)).evaluate())[:1]
    assert finding.kind == "nonfinite-output"


@pytest.mark.parametrize("limit", [{"max_grad_norm": 1e-6}, {"max_loss": 1e-6}, {"max_update_ratio": 1e-12}])
def test_limits(p, limit):
    """The user's own bounds hold in a trainer."""
    with pytest.raises(StabilityError) as caught, watch(**limit):
        p.train(p.bert())
    assert kinds(caught.value.findings) == ["limit"]


# -- Accelerate --------------------------------------------------------------------------------------------------------

LOOPS = {
    "plain": {},
    "accumulated": {"every": 2},
    "clipped": {"clip": 0.5},
    "bf16": {"precision": "bf16", "clip": 0.5, "every": 3},
}
every_loop = pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)


@every_loop
@pytest.mark.parametrize("region", [watch, zero_change])
def test_accelerate_stays_as_it_was(p, loop, region):
    """Steps of an `AcceleratedOptimizer` count once each; norms are those that its clip returns."""
    losses, norms, parameters = p.accelerated(**loop)
    with region() as watched:
        again_losses, again_norms, again_parameters = p.accelerated(**loop)
    run = getattr(watched, "run", watched)
    assert all(map(torch.equal, losses, again_losses))
    assert all(map(torch.equal, parameters, again_parameters))
    assert norms == again_norms
    assert run.findings == []
    every = loop.get("every", 1)
    assert run.steps == math.ceil(6 / every)
    assert run.loss == pytest.approx([loss.item() / every for loss in losses[every - 1 :: every]])
    if norms:
        assert run.grad_norm == pytest.approx(norms, rel=1e-5)
        assert run.clipped_grad_norm == pytest.approx([min(norm, 0.5) for norm in norms], rel=1e-4)


@every_way
@every_loop
@pytest.mark.parametrize("fault", ["forward", "backward"])
def test_a_fault_under_accelerate(p, ask, loop, fault):
    """Kind, step and the line of the loop."""
    at = 5
    (finding,) = ask(lambda: p.accelerated(fault, at=at, **loop))[:1]
    assert finding.kind == ("nonfinite-loss" if fault == "forward" else "nonfinite-gradient")
    assert finding.step == at // loop.get("every", 1) + 1
    assert at_word(finding, "culprit")


@every_way
def test_a_clip_before_the_backward_pass(p, ask):
    """`accelerator.clip_grad_norm_` too early is found at that line."""
    (finding,) = ask(lambda: p.accelerated(early=True))[:1]
    assert finding.kind == "ineffective-clip"
    assert at_word(finding, "early clip")


# -- real sessions -----------------------------------------------------------------------------------------------------

TESTS = """
import pytest
from programs_transformers import *

def test_healthy(): train(bert())
def test_forward(): train(bert("forward"))
def test_backward(): train(bert("backward"), bf16=True)
def test_compute_loss(): own_loss("compute_loss")
def test_validation(): trainer(bert("validation"), evaluated=sentences(8)).evaluate()
def test_accelerate(): accelerated("forward", every=2)
def test_twins(): own_loss(), accelerated(every=2), trainer(bert(), evaluated=sentences(8)).evaluate()
"""
MARKED = TESTS.replace("bf16=True", "gradient_checkpointing=True") + "\npytestmark = pytest.mark.nanstab\n"
FOUND = {
    "test_forward": "nonfinite-loss",
    "test_backward": "nonfinite-gradient",
    "test_compute_loss": "nonfinite-loss",
    "test_validation": "nonfinite-output",
    "test_accelerate": "nonfinite-loss",
}


@pytest.mark.parametrize(("body", "flag"), [(TESTS, ["--nanstab"]), (MARKED, [])], ids=["flag", "marker"])
def test_sessions(p, pytester, body, flag):
    """With the flag explained on the spot, with the marker by a traced rerun; healthy twins pass."""
    pytester.makepyfile(test_it=body)
    ran = again(pytester, "-W", "ignore", *flag, "--nanstab-report=r.json")
    assert {name for name, word in ran.outcomes.items() if word == "failed"} == set(FOUND)
    assert {name for name, word in ran.outcomes.items() if word == "passed"} == {"test_healthy", "test_twins"}
    for test in json.loads(Path("r.json").read_text(encoding="utf-8"))["tests"]:
        kind = FOUND.get(test["id"].rpartition("::")[2])
        assert [finding["kind"] for finding in test["findings"]] == ([] if kind is None else [kind])
        for finding in test["findings"]:
            assert "programs_transformers.py" in finding["source"], finding
            assert finding["op"] is not None, finding
