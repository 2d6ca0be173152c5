"""What the tests of the HTML pages share: records with everything in them, hostile ones, and a parsed page."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser

VOID = frozenset({"meta", "link", "br", "path"})  # path: of SVG, closed in itself
FINDING = {
    "kind": "nonfinite-loss",
    "message": "NaN in the loss at step 18, born in net.0",
    "step": 18,
    "phase": "forward",
    "module": "net.0",
    "op": "exp",
    "source": "models/net.py:12",
    "evidence": {
        "dtype": "float32",
        "shape": [2, 3],
        "nan": 1,
        "inf": 0,
        "of": 6,
        "excerpt": {"file": "models/net.py", "first": 11, "guilty": 12, "lines": ["def f(x):", "    return x.exp()"]},
        "again": 'pytest "t.py::test_a[x]"',
    },
    "cause": "exp(x) overflows",
    "remedy": ["subtract the maximum", "or torch.softmax"],
}


def curve(steps=20, scale=1.0):
    return [scale * (2 + math.sin(step)) * 1.2**step for step in range(steps)]


def record(test="t.py::test_a[x]", outcome="passed", *, mode="explicit", steps=20, findings=(), **given):
    norms = curve(steps, 0.3)
    return {
        "id": test,
        "mode": mode,
        "check": "finite_steps",
        "precision": "32-true",
        "seed": 0,
        "outcome": outcome,
        "used_torch": True,
        "limits": {},
        "run": {
            "steps": steps,
            "loss": curve(steps),
            "grad_norm": norms,
            "clipped_grad_norm": [min(norm, 1.0) for norm in norms],
            "update_ratio": [0.01] * steps,
        },
        "headroom": {},
        "init_scale": None,
        "findings": list(findings),
        "notes": [],
        "margins": [],
        **given,
    }


def full_record():
    """One with every key, and gaps in its curves."""
    found = record("t.py::test_full", "failed", findings=[FINDING])
    found["run"]["loss"][17:] = ["nan", "nan", "inf"]
    found["run"]["grad_norm"][4:7] = [None, 0.5, None]
    found["limits"] = {
        "max_loss": {"value": 100.0, "source": "function marker"},
        "max_grad_norm": {"value": 50.0, "source": "pyproject.toml"},
        "min_grad_norm": {"value": 1e-12, "source": "call"},
        "max_update_ratio": {"value": 0.1, "source": "call"},
        "min_headroom_bits": {"value": 4.0, "source": "call"},
    }
    found["headroom"] = {
        "activation": {**{f"net.{n} float16": 3.0 + n / 2 for n in range(25)}, "head float32": 120.0},
        "gradient": {"net.0.weight float32": 126.5, "net.0.bias float32": "inf"},
    }
    found["underflow"] = {
        "float16": {
            "below_normal": 0.25,
            "below_subnormal": 0.03,
            "worst": "embed.weight",
            "worst_share": 0.5,
            "loss_scale": [1024.0, 65536.0],
        },
        "bfloat16": {"below_normal": 0.0, "below_subnormal": 0.0, "worst": "embed.weight", "worst_share": 0.0}
        | {"loss_scale": None},
    }
    found["parity"] = {
        "against": "64-true",
        "precision": "bf16-mixed",
        "eps": 0.0039,
        "loss": 0.012,
        "first": "net.1",
        "modules": [
            {"module": "net.0", "type": "Linear", "error": 0.002, "input_error": 0.0, "explained": True},
            {"module": "net.1", "type": "LayerNorm", "error": 0.3, "input_error": 0.002, "explained": False},
        ],
    }
    found["init_scale"] = [
        {"layer": "net.0.weight", "shape": "4x4", "scheme": "none", "expected_std": None, "verdict": "too small"}
    ]
    found["notes"] = ["near miss: log came within 1e-3"]
    found["margins"] = [
        {"margin": 1.5, "measured": 35.0, "limit": 100.0, "quantity": "loss", "step": 17, "sampled": True}
    ]
    return found


NASTY = (
    "\"><script>alert(1)</script><img src=x onerror=alert(1)>&amp;'\x00\x1b[31m\u202egnp.exe\ud800é漢\n</style></title>"
)
DEEP = json.loads("[" * 300 + "]" * 300)
ODD = (None, NASTY, 7, -1.5, math.inf, math.nan, 10**400, True, [], {}, [NASTY], {NASTY: NASTY}, {"a": [DEEP]}, DEEP)


def hostile_records():
    """A record full of markup, then each key in every odd type."""
    nasty = full_record()
    nasty.update(id=NASTY, mode=NASTY, outcome=NASTY, check=NASTY, precision=NASTY, seed=NASTY, notes=[NASTY])
    nasty["findings"] = [
        dict.fromkeys(("kind", "message", "step", "phase", "module", "op", "source", "cause", "remedy"), NASTY)
        | {"evidence": {NASTY: NASTY, "excerpt": {"lines": [NASTY], "file": NASTY}, "again": NASTY, "table": NASTY}}
    ]
    nasty["limits"] = {"max_loss": {"value": NASTY, "source": NASTY}, NASTY: {"value": 1.0, "source": NASTY}}
    nasty["headroom"] = {NASTY: {NASTY: 3.0, "a float32": NASTY}}
    nasty["init_scale"] = [{NASTY: NASTY, "layer": NASTY}]
    nasty["parity"] = {"against": NASTY, "first": NASTY, "modules": [{"module": NASTY, "type": NASTY}]}
    nasty["underflow"] = {NASTY: {"worst": NASTY, "below_normal": NASTY, "loss_scale": NASTY}}
    yield nasty
    whole = full_record()
    for name in whole:
        for value in ODD:
            yield {**whole, name: value}
    for name in FINDING:
        for value in ODD:
            yield {**whole, "findings": [{**FINDING, name: value}]}
    for name in FINDING["evidence"]:
        yield {**whole, "findings": [{**FINDING, "evidence": {**FINDING["evidence"], name: DEEP}}]}
    for inner in ("run", "underflow", "parity", "headroom", "limits"):
        for name in whole[inner]:
            yield from ({**whole, inner: {**whole[inner], name: value}} for value in ODD)


class Page(HTMLParser):
    """The elements of a page, and what is wrong with their nesting."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.words, self.styles, self.open, self.wrong = [], [], [], [], []
        self.feed(text)
        self.close()
        self.wrong += [f"<{name}> is not closed" for name in self.open]

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data):
        (self.styles if self.open[-1:] == ["style"] else self.words).append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def values(self, name):
        return [attributes[name] for _, attributes in self.elements if name in attributes]

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())
