"""`assert_handles_nonfinite`: pipelines that refuse, repair, or let bad values through."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from pytest_nanstab import NonFiniteError, StabilityError, assert_handles_nonfinite
from pytest_nanstab.corruptions.catalogue import all_corruptions
from pytest_nanstab.corruptions.model import Corruption

NAN, INF = float("nan"), float("inf")


def matrix():
    return np.random.default_rng(0).normal(size=(6, 3))


def frame():
    ages, sizes = [31.0, 42.0, 25.5, 60.0, 18.0], [1.8, 1.6, 1.9, 1.7, 1.75]
    return pd.DataFrame({"age": ages, "size": sizes, "rooms": [1, 2, 3, 2, 1]})


def failure(pipeline, sample, **kwargs):
    with pytest.raises(StabilityError) as caught:
        assert_handles_nonfinite(pipeline, sample, **kwargs)
    return caught.value


def refusing(x):
    """Refuses what float32 cannot hold, naming row and column."""
    with np.errstate(over="ignore"):
        out = np.asarray(x).astype(np.float32)
    if not np.isfinite(out).all():
        place = np.argwhere(~np.isfinite(out))[0].tolist()
        raise ValueError(f"row {place[0]}, column {place[-1]}: not finite")
    return out


def repairing(x):
    return np.clip(np.nan_to_num(x, nan=0.0, posinf=1e6, neginf=-1e6), -1e6, 1e6).astype(np.float32)


def passing(x):
    with np.errstate(over="ignore"):
        return np.asarray(x).astype(np.float32) * 2


def outcomes(error):
    return {(row["corruption"], row["place"]): row["outcome"] for row in error.findings[0].evidence["outcomes"]}


def test_refusing_pipeline_passes_reject_and_fails_sanitize():
    """An exception is right under one policy and wrong under the other."""
    assert_handles_nonfinite(refusing, matrix(), policy="reject")
    error = failure(refusing, matrix(), policy="sanitize")
    assert not isinstance(error, NonFiniteError)
    assert "refused (ValueError) instead of repaired" in outcomes(error).values()


def test_repairing_pipeline_passes_sanitize_and_fails_reject():
    """Finite output is right under one policy and wrong under the other."""
    assert_handles_nonfinite(repairing, matrix(), policy="sanitize")
    error = failure(repairing, matrix(), policy="reject")
    assert "accepted: finite output" in outcomes(error).values()


@pytest.mark.parametrize("policy", ["reject", "sanitize"])
def test_what_gets_through_is_named_with_its_place(policy):
    """NaN in, NaN out: the finding says which corruption, and where it came out."""
    error = failure(passing, matrix(), policy=policy)
    assert isinstance(error, NonFiniteError)
    (finding,) = error.findings
    assert (finding.kind, finding.phase) == ("accepted-nonfinite", "data")
    evidence = finding.evidence
    assert (evidence["rows"], evidence["columns"], evidence["nan"]) == ([3], [0], 1)
    assert evidence["outcomes"][0]["outcome"] == "let through: NaN, row 3, column 0"
    assert len(evidence["outcomes"]) == len(all_corruptions(matrix()))
    assert "test_pipelines.py:" in finding.source


def test_magnitude_beyond_the_output_dtype_must_not_saturate_under_reject():
    """1e39 in float64 becomes inf or the largest float32; a logarithm holds it."""

    def saturating(x):
        if not np.isfinite(x).all():
            raise ValueError("not finite")
        limit = np.finfo(np.float32).max
        return np.clip(x, -limit, limit).astype(np.float32)

    def logarithm(x):
        if not np.isfinite(x).all():
            raise ValueError("not finite")
        return np.log1p(np.abs(x)).astype(np.float32)

    assert set(outcomes(failure(saturating, matrix(), policy="reject")).values()) == {
        "accepted: finite output",
        "finite",
        "refused",
    }
    assert_handles_nonfinite(logarithm, matrix(), policy="reject")


def test_overflow_of_a_legal_value_fails_under_both_policies():
    """A finite value that comes out infinite is neither refused nor repaired."""

    def squared(x):
        if not np.isfinite(x).all():
            raise ValueError("not finite")
        with np.errstate(over="ignore"):
            return x.astype(np.float32) ** 2

    assert any(
        words.startswith("let through: Inf") for words in outcomes(failure(squared, matrix(), policy="reject")).values()
    )


def test_unexpected_exception_is_named():
    """An exception outside `raises` is a failure even under reject; naming it makes it a refusal."""

    def breaking(x):
        if not np.isfinite(x.astype(np.float32)).all():
            raise KeyError("lookup")
        return x

    sample = matrix().astype(np.float32)
    error = failure(breaking, sample, policy="reject")
    assert error.findings[0].kind == "bad-data"
    assert "raised KeyError" in outcomes(error).values()
    assert "KeyError: 'lookup'" in error.findings[0].evidence["error"]
    assert_handles_nonfinite(breaking, sample, policy="reject", raises=KeyError)


def test_control_good_data_must_pass():
    """A pipeline that refuses everything, or makes NaN of good data, fails before anything is corrupted."""

    def closed(x):
        raise ValueError("no")

    def constant_column(x):
        with np.errstate(invalid="ignore"):
            return (x - x.mean(0)) / x.std(0)

    error = failure(closed, matrix(), policy="reject")
    assert str(error).splitlines()[0] == "the control failed: it refuses good data"
    assert "ValueError: no" in str(error)
    sample = matrix()
    sample[:, 1] = 4.0
    error = failure(constant_column, sample, policy="sanitize")
    assert str(error).splitlines()[0] == "the control failed: it breaks good data"
    assert "column 1" in error.findings[0].evidence["control"]


def test_place_must_be_named_when_asked():
    """match_place wants row, column or field in the refusal."""

    def vague(x):
        if not np.isfinite(x).all():
            raise ValueError("bad input")
        return x

    assert_handles_nonfinite(refusing, matrix(), policy="reject", match_place=True)
    assert_handles_nonfinite(vague, matrix(), policy="reject")
    words = outcomes(failure(vague, matrix(), policy="reject", match_place=True)).values()
    assert "refused without naming the place" in words


def test_repair_must_not_touch_good_rows():
    """A pipeline that treats rows alone on clean data must not change other rows when it repairs one."""

    def panicking(x):
        return x if np.isfinite(x).all() else np.zeros_like(x)

    error = failure(panicking, matrix(), policy="sanitize", corruptions=["NaN"])
    assert "changed rows that were good" in outcomes(error).values()


def test_dependent_rows_may_change_in_a_repair():
    """A z-score moves all rows when one is repaired: that is no damage."""

    def z_score(x):
        x = np.clip(np.nan_to_num(x, posinf=0.0, neginf=0.0), -1e3, 1e3)
        return (x - x.mean(0)) / (x.std(0) + 1e-6)

    assert_handles_nonfinite(z_score, matrix(), policy="sanitize")


def test_filter_may_drop_the_corrupted_rows_only():
    """Fewer rows are right when only the corrupted ones are gone."""

    def dropping(x):
        return x[np.isfinite(x).all(axis=1)]

    def dropping_too_many(x):
        keep = np.isfinite(x).all(axis=1)
        return x[keep] if keep.all() else x[:1]

    def dropping_the_wrong_ones(x):
        bad = int((~np.isfinite(x).all(axis=1)).sum())
        return np.nan_to_num(x, posinf=0.0, neginf=0.0)[bad:]

    sample = matrix()
    assert_handles_nonfinite(dropping, sample, policy="sanitize")
    words = set(outcomes(failure(dropping_too_many, sample, policy="sanitize")).values())
    assert any(word.startswith("changed the output from float64[6, 3]") for word in words)
    words = outcomes(failure(dropping_the_wrong_ones, sample, policy="sanitize", corruptions="NaN"))
    assert words["NaN", "element [3, 0]"] == "changed rows that were good"


def test_repair_keeps_shape_and_dtype():
    """float64 for float32, or another structure, is no repair."""

    def widening(x):
        return x if np.isfinite(x).all() else np.nan_to_num(x.astype(np.float64), posinf=0.0, neginf=0.0)

    def restructuring(x):
        return {"x": x} if np.isfinite(x).all() else {"y": np.zeros_like(x)}

    sample = matrix().astype(np.float32)
    words = outcomes(failure(widening, sample, policy="sanitize"))
    assert words["NaN", "row 3"] == "changed the output from float32[6, 3] to float64[6, 3]"
    words = outcomes(failure(restructuring, sample, policy="sanitize"))
    assert words["NaN", "row 3"] == "changed the structure of the output"


def test_scaler_passes_nan_on():
    """StandardScaler treats NaN as missing and hands it on, in fitting and in transforming; Inf it refuses."""
    error = failure(StandardScaler(), matrix(), policy="reject", corruptions=["NaN", "Inf"])
    words = outcomes(error)
    assert words["NaN (fit)", "element [3, 0]"].startswith("let through: NaN")
    assert words["NaN (transform)", "element [3, 0]"].startswith("let through: NaN")
    assert words["+Inf (fit)", "row 3"] == "refused"


def test_fitted_scaler_is_only_transformed():
    """What is fitted already is not fitted again."""
    scaler = StandardScaler().fit(matrix())
    mean = scaler.mean_.copy()
    names = {name for name, _ in outcomes(failure(scaler, matrix(), policy="reject"))}
    assert {"NaN", "+Inf"} <= names
    assert np.array_equal(scaler.mean_, mean)


def test_imputing_and_scaling_pipeline_repairs_nan():
    """SimpleImputer before StandardScaler repairs NaN; with a clip in front also infinities and extremes."""
    with_nan = make_pipeline(SimpleImputer(), StandardScaler())
    clip = FunctionTransformer(lambda x: np.clip(np.nan_to_num(x, posinf=1e3, neginf=-1e3), -1e3, 1e3))
    assert_handles_nonfinite(make_pipeline(clip, StandardScaler()), matrix(), policy="sanitize")
    words = outcomes(failure(with_nan, matrix(), policy="sanitize"))
    assert words["NaN (fit)", "element [3, 0]"] == "repaired"
    assert words["+Inf (fit)", "element [3, 0]"] == "refused (ValueError) instead of repaired"


def test_pandas_functions():
    """Filling by the median repairs a frame, dropping rows filters it, plain arithmetic lets NaN through."""

    def filled(data):
        data = data.where(data.abs() < 1e6)
        return data.fillna(data.median()).fillna(0.0)

    def dropped(data):
        return data[data.abs().lt(1e6).all(axis=1)]

    assert_handles_nonfinite(filled, frame(), policy="sanitize")
    assert_handles_nonfinite(dropped, frame(), policy="sanitize")
    error = failure(lambda data: data / data.max(), frame(), policy="reject")
    assert error.findings[0].evidence["field"] == "age"


def test_frame_refusal_names_the_column():
    """match_place accepts the column's name."""

    def checked(data):
        bad = [name for name in data if not np.isfinite(data[name].to_numpy(dtype=float)).all()]
        if bad:
            raise ValueError(f"column {bad[0]!r} is not finite")
        return data

    assert_handles_nonfinite(checked, frame(), policy="reject", match_place=True)


def test_missing_dates_and_objects_are_seen_in_the_output():
    """NaT and None are no numbers, and no values either."""
    sample = pd.DataFrame({"when": pd.to_datetime(["2020-01-01", "2020-01-02", "2020-01-03"]), "x": [1.0, 2.0, 3.0]})
    words = outcomes(failure(lambda data: data, sample, policy="reject", corruptions="NaT"))
    assert all(word.startswith("let through: NaN in field when") for word in words.values())


def test_torch_transforms_in_nested_containers():
    """Tensors in a dict: only the fields that hold numbers are corrupted; the output field is named."""
    sample = {"image": torch.rand(2, 4, 4), "label": 3, "meta": {"scale": torch.tensor(2.0)}}

    def normalise(item):
        image = item["image"]
        return {**item, "image": (image - image.mean()) / image.std()}

    def guarded(item):
        for name, value in (("image", item["image"]), ("meta.scale", item["meta"]["scale"])):
            if not torch.isfinite(value).all():
                raise ValueError(f"field {name} is not finite")
        return {**item, "image": (item["image"] / item["image"].abs().max().clamp(min=1.0))}

    error = failure(normalise, sample, policy="reject")
    assert error.findings[0].evidence["field"] == "image"
    assert_handles_nonfinite(guarded, sample, policy="reject", match_place=True)


def test_z_score_of_a_constant_column_under_corruption():
    """0/0 where the repair made a column constant is found, and an epsilon heals it."""

    def z_score(x, epsilon=0.0):
        x = torch.nan_to_num(x, posinf=0.0, neginf=0.0).clamp(-1e3, 1e3)
        return (x - x.mean(0)) / (x.std(0, correction=0) + epsilon)

    sample = torch.from_numpy(matrix())
    words = outcomes(failure(z_score, sample, policy="sanitize"))
    assert words["NaN", "column 1"].startswith("let through: NaN")
    assert_handles_nonfinite(lambda x: z_score(x, 1e-6), sample, policy="sanitize")


def test_text_pipelines():
    """Undecodable text must be refused or repaired; ids of another length are no damage."""
    sample = ["a horse", "my kingdom", "for a horse"]

    def encode(texts):
        return [list(text.encode("utf-8")) for text in texts]

    def repaired(texts):
        return ["" if text is None else text.encode("utf-8", "replace").decode("utf-8") for text in texts]

    assert_handles_nonfinite(encode, sample, policy="reject", corruptions="surrogate")
    assert "raised AttributeError" in outcomes(failure(encode, sample, policy="reject")).values()
    assert_handles_nonfinite(repaired, sample, policy="sanitize")
    error = failure(lambda texts: [text and text.upper() for text in texts], sample, policy="sanitize")
    assert "let through: text that cannot be encoded in field 1" in outcomes(error).values()
    assert error.findings[0].is_nonfinite


def test_sample_pipeline_and_random_state_are_left_alone():
    """In-place pipelines get copies, stateful ones are copied, and generators are where they were."""

    class Running:
        def __init__(self):
            self.seen = 0

        def __call__(self, x):
            self.seen += 1
            x *= 2
            torch.rand(1), np.random.rand()
            return refusing(x)

    sample, pipeline = matrix(), Running()
    before, state, numbers = sample.copy(), torch.get_rng_state(), np.random.get_state()[1].copy()
    assert_handles_nonfinite(pipeline, sample, policy="reject")
    assert np.array_equal(sample, before)
    assert pipeline.seen == 0
    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(numbers, np.random.get_state()[1])


def test_random_augmentation_is_no_damage():
    """The same draws in every run: noise on the rows is not a change of good rows."""

    def noisy(x):
        return np.nan_to_num(x, posinf=0.0, neginf=0.0).clip(-1e3, 1e3) + np.random.normal(size=x.shape)

    assert_handles_nonfinite(noisy, matrix(), policy="sanitize")


def test_warnings_decide_nothing():
    """A RuntimeWarning made an error by a filter is no refusal."""

    def warning(x):
        import warnings

        if not np.isfinite(x).all():
            warnings.warn("invalid value", RuntimeWarning, stacklevel=1)
        return x

    words = outcomes(failure(warning, matrix(), policy="reject"))
    assert not any(word.startswith("raised") for word in words.values())


def test_corruptions_are_chosen_by_name_pattern_or_object():
    """Parts of names, patterns, and own objects."""
    names = {name for name, _ in outcomes(failure(passing, matrix(), policy="reject", corruptions=["inf"]))}
    assert names == {"+Inf", "-Inf"}
    names = {name for name, _ in outcomes(failure(passing, matrix(), policy="reject", corruptions=["1e*"]))}
    assert names == {"1e5 (beyond float16)", "1e39 (beyond float32)"}
    own = Corruption("sentinel", "row 0", True, np.full((6, 3), -999.0), (0,))
    assert outcomes(failure(passing, matrix(), policy="reject", corruptions=[own])) == {
        ("sentinel", "row 0"): "accepted: finite output"
    }


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"policy": "ignore"}, ValueError, "policy must be one of reject, sanitize, got 'ignore'"),
        ({"policy": "reject", "raises": "ValueError"}, TypeError, "raises must be exception classes"),
        ({"policy": "reject", "raises": ()}, TypeError, "raises must be exception classes"),
        ({"policy": "reject", "corruptions": ["typo"]}, ValueError, "'typo' is the name of none; this sample has NaN"),
        ({"policy": "reject", "corruptions": [3]}, TypeError, "corruptions must be names, patterns or Corruption"),
        ({"policy": "reject", "corruptions": []}, TypeError, "corruptions must be names, patterns or Corruption"),
        ({"policy": "reject", "sample": np.array([True])}, ValueError, "no corruption fits the sample"),
        (
            {"policy": "reject", "pipeline": 3},
            TypeError,
            "must be callable, a data set, or have fit and transform, got int",
        ),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    """What was given and what is allowed, at once."""
    given = {"pipeline": refusing, "sample": matrix(), **arguments}
    with pytest.raises(error, match=message):
        assert_handles_nonfinite(given.pop("pipeline"), given.pop("sample"), **given)


def test_scalar_pipeline():
    """A function of one number has no place to name."""

    def root(x):
        if not 0 <= x < INF:
            raise ValueError("out of range")
        return math.sqrt(x)

    assert_handles_nonfinite(root, 2.0, policy="reject", match_place=True)
    failure(lambda x: x * 2, 2.0, policy="reject")
