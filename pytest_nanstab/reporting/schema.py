"""The JSON Schema of a report, made from the code that writes one. Imports no torch.

python -m pytest_nanstab.reporting.schema > report.schema.json
"""

from __future__ import annotations

import json
from typing import Any, TypeAlias, get_args

from pytest_nanstab.config import LIMIT_HELP, MODES
from pytest_nanstab.findings import KINDS, Finding, Phase
from pytest_nanstab.reporting.model import SCHEMA
from pytest_nanstab.suite.spec import CHECKS, PRECISIONS

Schema: TypeAlias = "dict[str, Any]"
OUTCOMES = ("passed", "failed", "skipped", "xfailed", "xpassed")
_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_STEP: Schema = {"type": ["integer", "null"], "minimum": 0}
_SOME_TEXT: Schema = {"type": ["string", "null"]}
# JSON has no NaN: what is not finite is written as one of three strings.
_NUMBER: Schema = {"anyOf": [{"type": "number"}, {"enum": ["nan", "inf", "-inf"]}]}
_MEASURED: Schema = {"anyOf": [*_NUMBER["anyOf"], {"type": "null"}]}
_CURVE: Schema = {"type": "array", "items": _MEASURED}


def report_schema() -> Schema:
    """The schema of `--nanstab-report=PATH.json`; fields may be added to it without another number."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Report of pytest-nanstab, schema {SCHEMA}",
        **_object(
            {
                "schema": {"const": SCHEMA},
                "environment": _environment(),
                "tests": {"type": "array", "items": _test()},
                "summary": _summary(),
            }
        ),
    }


def _object(properties: Schema, description: str = "") -> Schema:
    """An object that has all of these."""
    told = {"description": description} if description else {}
    return {"type": "object", **told, "properties": properties, "required": sorted(properties)}


def _by_name(values: Schema, description: str) -> Schema:
    return {"type": "object", "description": description, "additionalProperties": values}


def _maybe(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _one_of(values: tuple[str, ...], *, none: bool = False) -> Schema:
    return {"enum": [*values, None] if none else list(values)}


def _environment() -> Schema:
    versions = dict.fromkeys(("torch", "numpy", "pytest", "hypothesis", "pytest-nanstab"), _SOME_TEXT)
    texts = {"type": "array", "items": _TEXT}
    return _object({"python": _TEXT, "platform": _TEXT, **versions, "devices": texts, "args": texts})


def _test() -> Schema:
    limit = _object({"value": {"type": "number"}, "source": _TEXT}, "a limit in force, and where it was stated")
    limits = {"type": "object", "properties": dict.fromkeys(LIMIT_HELP, limit), "additionalProperties": False}
    return _object(
        {
            "id": {**_TEXT, "description": "pytest's node id"},
            "mode": _one_of(tuple(mode if mode != "all" else "watched" for mode in MODES if mode != "off")),
            "check": _one_of((*CHECKS, "baseline"), none=True),
            "precision": _one_of(PRECISIONS, none=True),
            "seed": {"type": ["integer", "null"]},
            "outcome": _one_of(OUTCOMES),
            "used_torch": {"type": "boolean"},
            "limits": limits,
            "run": _maybe(_run()),
            "headroom": _by_name(
                _by_name({"type": "number"}, "bits by tensor and dtype, as in `blocks.0 float32`"),
                "of activation, loss, gradient and parameter: log2(finfo.max / max|value|)",
            ),
            "left_out": _by_name(_COUNT, "values of a tensor that were infinite or at the end of the format"),
            "underflow": _by_name(_underflow(), "of float16 and bfloat16: gradients too small for the format"),
            "init_scale": _maybe({"type": "array", "items": _init_scale()}),
            "parity": _maybe({"type": "object", "description": 'one pass against the same in "64-true"'}),
            "margins": {"type": "array", "items": _margin()},
            "findings": {"type": "array", "items": _finding(), "description": "the root cause first"},
            "notes": {"type": "array", "items": _TEXT},
        }
    )


def _run() -> Schema:
    names = ("loss", "grad_norm", "clipped_grad_norm", "update_ratio")
    return _object({"steps": _COUNT, **dict.fromkeys(names, _CURVE)}, "one entry per optimizer step")


def _underflow() -> Schema:
    share = {"type": "number", "minimum": 0, "maximum": 1}
    scales = {"type": "array", "items": {"type": "number"}}
    return {
        "type": "object",
        "properties": {
            "below_normal": share,
            "below_subnormal": share,
            "worst": _SOME_TEXT,
            "worst_share": share,
            "loss_scale": _maybe(scales),
        },
    }


def _init_scale() -> Schema:
    return _object(
        {
            "layer": _TEXT,
            "shape": _TEXT,
            "scheme": _SOME_TEXT,
            "expected_std": _MEASURED,
            "measured_std": _MEASURED,
            "ratio": _MEASURED,
            "verdict": _TEXT,
        }
    )


def _margin() -> Schema:
    return _object(
        {
            "margin": {"type": "number", "description": "bits to the nearest limit"},
            "measured": _MEASURED,
            "limit": _MEASURED,
            "quantity": _TEXT,
            "step": _STEP,
            "sampled": {"type": "boolean", "description": "measured at sampled steps: the true margin may be smaller"},
        }
    )


def _finding() -> Schema:
    fields: Schema = dict.fromkeys(Finding.__dataclass_fields__, _SOME_TEXT)
    return _object(
        {
            **fields,
            "kind": _one_of(KINDS),
            "message": _TEXT,
            "step": _STEP,
            "phase": _one_of(get_args(Phase), none=True),
            "evidence": {"type": "object", "description": "what was measured; its names may change"},
        }
    )


def _summary() -> Schema:
    counts = ("tests", "explicit", "watched", "never_used_torch", "optimizer_steps", *OUTCOMES)
    kinds = {"type": "object", "propertyNames": _one_of(KINDS), "additionalProperties": _COUNT}
    return _object({**dict.fromkeys(counts, _COUNT), "findings": kinds})


def text() -> str:
    """The schema as a file."""
    return json.dumps(report_schema(), indent=1) + "\n"


if __name__ == "__main__":
    print(text(), end="")  # noqa: T201 - what the module is run for
