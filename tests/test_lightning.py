"""Lightning's `Trainer` as it is: faults are found at their step and line, and a healthy run stays as it was."""

from __future__ import annotations

import contextlib
import importlib.util
from functools import partial
from pathlib import Path

import pytest
import torch
from plugin_runs import again
from watched import every_way, is_marked, kinds, raised, sampled, zero_change

from pytest_nanstab import StabilityError, watch

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("lightning") is None, reason="needs lightning"),
    pytest.mark.filterwarnings("ignore"),  # Lightning warns of few workers, and uses what torch has deprecated
    pytest.mark.slow,  # importing it takes seconds
]
PROGRAMS = Path(__file__).parent / "programs_lightning.py"


@pytest.fixture(scope="module")
def p():
    """The programs: imported late, because collecting should not take as long as importing Lightning."""
    return pytest.importorskip("programs_lightning", exc_type=ImportError)  # torch may be too old for it


at_word = partial(is_marked, PROGRAMS)


WAYS = {
    "32-true": {"precision": "32-true"},
    "64-true": {"precision": "64-true"},
    "bf16-true": {"precision": "bf16-true"},
    "16-true": {"precision": "16-true"},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "16-mixed": {"precision": "16-mixed"},  # on a CPU Lightning takes bfloat16 instead
    "accumulate": {"accumulate_grad_batches": 2},
    "norm": {"gradient_clip_val": 0.5},
    "value": {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"},
    "both": {"gradient_clip_val": 0.5, "accumulate_grad_batches": 3, "precision": "bf16-mixed"},
}
every_setting = pytest.mark.parametrize("setting", WAYS.values(), ids=WAYS)
REGIONS = [watch, zero_change]


@every_setting
@pytest.mark.parametrize("region", REGIONS)
def test_a_healthy_run_stays_as_it_was(p, setting, region):
    """Losses, norms, parameters and random numbers to the last bit; steps are the trainer's; norms are before clips."""

    def once(context):
        model = p.Automatic()
        with context as watched:
            trained = p.fit(model, **setting)
        return model, trained, getattr(watched, "run", watched), torch.random.get_rng_state()

    plain, _, _, state = once(contextlib.nullcontext())
    model, trained, run, watched_state = once(region())
    assert torch.equal(state, watched_state)
    assert plain.norms == model.norms
    assert all(map(torch.equal, plain.losses, model.losses))
    assert all(map(torch.equal, plain.parameters(), model.parameters()))
    assert run.findings == []
    assert run.steps == trained.global_step == len(model.norms)
    every = setting.get("accumulate_grad_batches", 1)
    assert run.loss == pytest.approx([loss.item() / every for loss in model.losses[every - 1 :: every]])
    assert run.grad_norm == pytest.approx(model.norms, rel=1e-5)
    if setting == WAYS["norm"]:
        assert run.clipped_grad_norm == pytest.approx([min(norm, 0.5) for norm in model.norms], rel=1e-4)
    if setting == WAYS["value"]:
        assert all(clipped < raw for clipped, raw in zip(run.clipped_grad_norm, run.grad_norm, strict=True))


FORMS = [("Automatic", setting) for setting in WAYS.values()]
LOSSES = [*FORMS, ("ReturnsDictionary", WAYS["32-true"]), ("Manual", WAYS["bf16-mixed"])]
GRADIENTS = [*FORMS, ("Manual", WAYS["32-true"]), ("Manual", WAYS["bf16-mixed"])]


@pytest.mark.parametrize("ask", [raised, sampled])
@pytest.mark.parametrize(("form", "setting"), LOSSES)
def test_a_loss_that_breaks(p, ask, setting, form):
    """The operation in `training_step` is named, at the step of the trainer."""
    (finding,) = ask(lambda: p.fit(getattr(p, form)("forward", at=3), **setting))[:1]
    assert finding.kind == "nonfinite-loss"
    assert finding.step == 3 // setting.get("accumulate_grad_batches", 1) + 1
    assert at_word(finding, "culprit")
    assert finding.op == "log"


@pytest.mark.parametrize("ask", [raised, sampled])
@pytest.mark.parametrize(("form", "setting"), GRADIENTS)
def test_a_gradient_that_breaks(p, ask, setting, form):
    """A derivative of a finite loss; its forward line is named."""
    (finding,) = ask(lambda: p.fit(getattr(p, form)("backward", at=3), **setting))[:1]
    every = setting.get("accumulate_grad_batches", 1)
    assert (finding.kind, finding.step) == ("nonfinite-gradient", 3 // every + 1)
    # In an unmarked test gradients are seen at the step, when the last batch alone is at hand: a rerun tells.
    if every != 3 or ask.__name__ != "sampled":
        assert at_word(finding, "culprit")


@every_way
def test_data_that_is_bad(p, ask):
    """The batch is blamed, not the model."""
    (finding,) = ask(lambda: p.fit(p.Automatic(), p.loader(bad=4)))[:1]
    assert (finding.kind, finding.step) == ("nonfinite-input", 5)
    assert finding.evidence["rows"] == [2]


@every_way
def test_a_schedule_that_divides_by_zero(p, ask):
    """The rate turns NaN for the fifth step; the optimizer and its rate are named."""
    (finding,) = ask(lambda: p.fit(p.Scheduled("schedule")))[:1]
    assert (finding.kind, finding.step) == ("nonfinite-parameter", 5)
    assert "lr" in (finding.cause or "")
    assert ask(lambda: p.fit(p.Scheduled())) == []


@every_way
def test_manual_optimisation(p, ask):
    """Own zero_grad, backward, clip and step."""
    (finding,) = ask(lambda: p.fit(p.Manual("forward", at=3)))[:1]
    assert (finding.kind, finding.step, finding.op) == ("nonfinite-loss", 4, "log")
    assert at_word(finding, "culprit")
    assert ask(lambda: p.fit(p.Manual())) == []


@every_way
def test_a_clip_before_the_backward_pass(p, ask):
    """`self.clip_gradients` too early is found at that line."""
    (finding,) = ask(lambda: p.fit(p.Manual("clip")))[:1]
    assert finding.kind == "ineffective-clip"
    assert at_word(finding, "early clip")


@every_way
def test_two_optimizers(p, ask):
    """Each step of either counts, and the one whose loss breaks is told."""
    (finding,) = ask(lambda: p.fit(p.Adversarial("forward", at=2)))[:1]
    assert (finding.kind, finding.step) == ("nonfinite-loss", 6)
    assert at_word(finding, "culprit")
    assert ask(lambda: p.fit(p.Adversarial())) == []


def test_two_optimizers_are_counted_as_the_trainer_does(p):
    """`global_step` counts every step of every optimizer, and so does the run."""
    plain = p.Adversarial()
    p.fit(plain)
    model = p.Adversarial()
    with watch() as run:
        trained = p.fit(model)
    assert run.steps == trained.global_step == 12
    assert all(map(torch.equal, plain.parameters(), model.parameters()))


@every_way
@pytest.mark.parametrize("sanity", [0, 2])
def test_a_nan_only_in_validation(p, ask, sanity):
    """The output of the model is judged in the sanity check as in the epoch's end."""

    def body(fault):
        run = p.trainer(num_sanity_val_steps=sanity)
        run.fit(p.validated(fault), p.loader(), p.loader(2))

    (finding,) = ask(lambda: body("validation"))
    assert (finding.kind, finding.phase) == ("nonfinite-output", "eval")
    assert finding.step in ((0, None) if sanity else (6, None))
    assert at_word(finding, "culprit")
    assert ask(lambda: body(None)) == []


@every_way
@pytest.mark.parametrize("what", ["validate", "test"])
def test_evaluation_without_training(p, ask, what):
    """`Trainer.validate` and `Trainer.test` run under `inference_mode`."""
    (finding,) = ask(lambda: getattr(p.trainer(), what)(p.validated("validation"), p.loader(2), verbose=False))
    assert finding.kind == "nonfinite-output"
    assert at_word(finding, "culprit")
    assert ask(lambda: getattr(p.trainer(), what)(p.validated(), p.loader(2), verbose=False)) == []


@pytest.mark.parametrize("limit", [{"max_grad_norm": 1e-3}, {"max_loss": 1e-3}, {"max_update_ratio": 1e-9}])
def test_limits(p, limit):
    """The user's own bounds hold in a trainer, whose error handling lets the failure through."""
    with pytest.raises(StabilityError) as caught, watch(**limit):
        p.fit(p.Automatic(), gradient_clip_val=0.5)
    assert kinds(caught.value.findings) == ["limit"]
    assert caught.value.findings[0].step == 1


def test_averaged_weights(p):
    """Stochastic weight averaging swaps weights and batch statistics within the trainer."""
    from lightning.pytorch.callbacks import StochasticWeightAveraging

    def once(context):
        model = p.Automatic()
        model.net.insert(1, torch.nn.BatchNorm1d(8))
        with context as run:
            trained = p.fit(model, max_epochs=4, callbacks=[StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=2)])
        return list(model.state_dict().values()), run, trained.global_step

    plain, _, _ = once(contextlib.nullcontext())
    watched, run, steps = once(watch())
    assert all(map(torch.equal, plain, watched))
    assert (run.steps, run.findings) == (steps, [])


# -- real sessions -----------------------------------------------------------------------------------------------------

TESTS = """
import pytest
from programs_lightning import *

def test_healthy(): fit(Automatic(), gradient_clip_val=0.5)
def test_forward(): fit(Automatic("forward", at=3))
def test_backward(): fit(Automatic("backward", at=3), gradient_clip_val=0.5)
def test_manual(): fit(Manual("forward", at=3))
def test_early_clip(): fit(Manual("clip"))
def test_twin(): fit(Manual())
def test_data(): fit(Automatic(), loader(bad=4))
def test_validation(): trainer().fit(validated("validation"), loader(), loader(2))
def test_validation_twin(): trainer().fit(validated(), loader(), loader(2))
"""
MARKED = TESTS + "\npytestmark = pytest.mark.nanstab\n"
FOUND = {
    "test_forward": "nonfinite-loss",
    "test_backward": "nonfinite-gradient",
    "test_manual": "nonfinite-loss",
    "test_early_clip": "ineffective-clip",
    "test_data": "nonfinite-input",
    "test_validation": "nonfinite-output",
}


@pytest.mark.parametrize(("body", "flag"), [(TESTS, ["--nanstab"]), (MARKED, [])], ids=["flag", "marker"])
def test_sessions(p, pytester, body, flag):
    """With the flag explained on the spot, with the marker by a traced rerun; healthy twins pass."""
    import json

    pytester.makepyfile(test_it=body)
    ran = again(pytester, "-W", "ignore", *flag, "--nanstab-report=r.json")
    assert {name for name, word in ran.outcomes.items() if word == "failed"} == set(FOUND)
    assert {name for name, word in ran.outcomes.items() if word == "passed"} == {
        "test_healthy",
        "test_twin",
        "test_validation_twin",
    }
    for test in json.loads(Path("r.json").read_text())["tests"]:
        kind = FOUND.get(test["id"].rpartition("::")[2])
        assert [finding["kind"] for finding in test["findings"]] == ([] if kind is None else [kind])
        for finding in test["findings"]:
            if kind != "nonfinite-input":
                assert "programs_lightning.py" in finding["source"], finding
            if kind in ("nonfinite-loss", "nonfinite-gradient", "nonfinite-output"):
                assert finding["op"] is not None, finding


def test_without_the_flag_nothing_changes(p, pytester):
    """No watch: trainings on NaN pass as they always did."""
    pytester.makepyfile(test_it=TESTS)
    assert set(again(pytester, "-W", "ignore").outcomes.values()) == {"passed"}
