"""Programs as people write them: `--nanstab` fails the broken ones, for their reason, and lets the tricky ones be."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch")

PROGRAMS = """
import copy, threading, weakref, gc, warnings
import pytest, torch
from torch import nn
from torch.optim import SGD, Adam
NAN=float("nan")
def step(m,o,x): o.zero_grad(); m(x).pow(2).mean().backward(); o.step()
def mlp(): return nn.Sequential(nn.Linear(8,16),nn.ReLU(),nn.Linear(16,1))
class TestFail:
    def test_poisoned_batch_norm(self):
        m = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8,1)); o = SGD(m.parameters(), .01)
        for i in range(4):
            x = torch.randn(4,8)
            if i == 1: x[0] = 1e30
            step(m,o,x)
        m.eval(); m(torch.randn(4,8))
    def test_statistic_of_one_row_in_a_dead_model(self):
        class RV(nn.Module):
            def __init__(s): super().__init__(); s.register_buffer("running_var", torch.ones(8))
            def forward(s,x):
                if s.training: s.running_var = .9*s.running_var + .1*x.detach().var(0); return x
                return x/(s.running_var+1e-5).sqrt()
        def go():
            m = nn.Sequential(RV(), nn.Linear(8,1)); o = SGD(m.parameters(), .01)
            for n in (4,4,1): step(m,o,torch.randn(n,8))
        warnings.simplefilter("ignore"); go()
    def test_update_by_hand_cleared_after(self):
        m = nn.Linear(8,1); X = torch.randn(64,8)*10
        for i in range(60):
            m(X).pow(2).mean().backward()
            with torch.no_grad():
                for p in m.parameters(): p -= .5*p.grad; p.grad.zero_()
    def test_update_by_hand_cleared_before(self):
        m = nn.Linear(8,1); X = torch.randn(64,8)*10
        for i in range(60):
            m.zero_grad(); m(X).pow(2).mean().backward()
            with torch.no_grad():
                for p in m.parameters(): p -= .5*p.grad
    @pytest.mark.nanstab
    def test_loop_in_a_thread(self):
        def fit():
            m=mlp(); o=SGD(m.parameters(),1e20)
            for _ in range(5): step(m,o,torch.randn(4,8))
        t=threading.Thread(target=fit); t.start(); t.join()
    def test_scale_that_never_recovers(self):
        sc=torch.amp.GradScaler("cpu"); m=mlp(); o=SGD(m.parameters(),.1)
        for i in range(12):
            o.zero_grad(); l=m(torch.randn(4,8)).mean()*float("inf"); sc.scale(l).backward(); sc.step(o); sc.update()
    def test_empty_mask_between_modules(self):
        emb=nn.Linear(8,8); head=nn.Linear(8,1); o=SGD([*emb.parameters(),*head.parameters()],.1)
        for i in range(3):
            out=emb(torch.randn(4,5,8)); mask=torch.ones(4,5,1)
            if i==1: mask[2]=0
            pooled=(out*mask).sum(1)/mask.sum(1); o.zero_grad(); head(pooled).mean().backward(); o.step()
class TestPass:
    def test_clip_that_only_reads_the_norm(self):
        m=mlp(); o=Adam(m.parameters())
        for _ in range(5):
            o.zero_grad(); m(torch.randn(4,8)).pow(2).mean().backward()
            nn.utils.clip_grad_norm_(m.parameters(),1.); o.step()
            nn.utils.clip_grad_norm_(m.parameters(),float("inf"))
    def test_scale_that_settles(self):
        sc=torch.amp.GradScaler("cpu",init_scale=2.**60); m=mlp(); o=SGD(m.parameters(),1e-30)
        for i in range(70):
            o.zero_grad(); l=m(torch.randn(4,8)).pow(2).mean()*1e25; sc.scale(l).backward(); sc.step(o); sc.update()
    def test_lazy_modules(self):
        m = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d()); m(torch.randn(4,8))
    def test_output_with_eager_getattr(self):
        class B:
            def __init__(s): s.__dict__["store"]={}
            def __getattr__(s,k): return s.__dict__["store"][k]
        class M(nn.Module):
            def forward(s,x): return B()
        M()(torch.randn(2))
    @pytest.mark.filterwarnings("error::UserWarning")
    def test_compile_with_warnings_as_errors(self):
        m=mlp(); c=torch.compile(m,backend="eager"); c(torch.randn(4,8))
"""
KINDS = {
    "test_poisoned_batch_norm": "nonfinite-buffer",
    "test_statistic_of_one_row_in_a_dead_model": "nonfinite-buffer",
    "test_update_by_hand_cleared_after": "nonfinite-loss",
    "test_update_by_hand_cleared_before": "nonfinite-loss",
    "test_loop_in_a_thread": "nonfinite-loss",
    "test_scale_that_never_recovers": "stuck-loss-scale",
    "test_empty_mask_between_modules": "nonfinite-loss",
}


@pytest.fixture
def tests(pytester: pytest.Pytester) -> dict[str, dict]:
    """The records of all programs, by name, from one run in a process of its own.

    torch.compile loads modules that cannot be loaded twice.
    """
    pytester.makepyfile(test_as_written=PROGRAMS)
    pytester.runpytest_subprocess("--nanstab", "--nanstab-report=r.json", "-p", "no:randomly")
    report = json.loads((pytester.path / "r.json").read_text(encoding="utf-8"))
    return {test["id"].rpartition("::")[2]: test for test in report["tests"]}


def test_programs(tests):
    """Each broken program has its finding, and nothing is said of a program that is right."""
    found = {name: [finding["kind"] for finding in test["findings"]] for name, test in tests.items()}
    assert found == {name: [KINDS[name]] if name in KINDS else [] for name in tests}
    failed = {name for name, test in tests.items() if test["outcome"] == "failed"}
    assert failed == set(KINDS)
    assert len(tests) == 12
