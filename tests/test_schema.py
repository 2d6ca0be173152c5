"""The JSON Schema of the report: real reports fit it, and wrong ones do not."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import jsonschema
import pytest
from plugin_runs import run_inside
from test_plugin_reports import EVERYTHING

from pytest_nanstab.reporting.schema import report_schema, text

SHIPPED = Path(__file__).parent.parent / "docs" / "reference" / "report.schema.json"
MORE = (
    EVERYTHING
    + """
@stability_suite(steps=12, precision=["32-true", "16-mixed"], baseline=True)
def test_whole_suite(): return setup()

def test_driver(nanstab): nanstab.train(setup(), steps=3, min_headroom_bits=1)
"""
)


def closed(schema: object) -> object:
    """The schema without room for a field it does not describe."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    fixed = {key: closed(value) for key, value in schema.items()}
    if "required" in fixed:
        fixed.setdefault("additionalProperties", False)
    return fixed


_written: list[dict] = []


@pytest.fixture
def report(pytester: pytest.Pytester) -> dict:
    """The report of one session, which all tests here read."""
    if not _written:
        run_inside(pytester, MORE, "--nanstab", "--nanstab-headroom=0", "--nanstab-report=report.json")
        _written.append(json.loads(Path("report.json").read_text("utf-8")))
    return copy.deepcopy(_written[0])


def test_a_real_report_fits_and_every_field_is_described(report):
    jsonschema.Draft202012Validator.check_schema(report_schema())
    jsonschema.Draft202012Validator(closed(report_schema())).validate(report)
    assert {test["mode"] for test in report["tests"]} == {"explicit", "watched"}
    assert {test["check"] for test in report["tests"]} >= {None, "init_scale", "headroom", "baseline"}
    assert any(test["findings"] for test in report["tests"])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema",), 2),
        (("tests", 0, "mode"), "loud"),
        (("tests", 0, "findings", 0, "kind"), "nonfinite-loos"),
        (("tests", 0, "run", "loss", 0), "NaN"),
        (("tests", 0, "outcome"), None),
        (("summary", "findings"), {"no-kind": 1}),
        (("environment", "torch"), 2.13),
    ],
)
def test_a_wrong_report_does_not_fit(report, path, value):
    """The control: one wrong field anywhere is refused."""
    report["tests"].sort(key=lambda test: not test["findings"])
    place = report
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(report, report_schema())


def test_the_documentation_has_the_schema_of_the_code():
    """After a change: python -m pytest_nanstab.reporting.schema > docs/reference/report.schema.json"""
    assert SHIPPED.read_text("utf-8") == text()
