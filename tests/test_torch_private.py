"""What the watch uses of torch that is not public: when one of these fails, torch has changed there."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad
from torch.utils._python_dispatch import TorchDispatchMode
from watched import TORCH

from pytest_nanstab.watching import torch_private


def test_nothing_is_missing():
    """Every private name exists; the fallbacks are for versions to come."""
    late = {"_C._dynamo.eval_frame.get_eval_frame_callback"}  # came with torch 2.6
    assert set(torch_private.MISSING) - (late if TORCH < (2, 6) else set()) == set()


@pytest.mark.parametrize("name", ["clip_grad_norm_", "clip_grad_value_"])
def test_clips_keep_their_function_in_a_cell(name):
    """The clipping functions are wrapped once, and the wrapper's cell holds the function that is run."""
    cell = torch_private.closure_cell(getattr(clip_grad, name))
    assert cell is not None
    parameters = list(inspect.signature(cell.cell_contents).parameters)
    assert parameters[:2] == ["parameters", "max_norm" if name == "clip_grad_norm_" else "clip_value"]
    assert getattr(torch.nn.utils, name) is getattr(clip_grad, name)


def test_a_function_without_a_cell():
    """Other functions have none, and attributes are patched instead."""
    assert torch_private.closure_cell(test_a_function_without_a_cell) is None
    assert torch_private.closure_cell(len) is None


def test_modes_are_counted():
    """An active mode is seen, and `unseen` runs past it."""

    class Mode(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            Mode.calls += 1
            return func(*args, **(kwargs or {}))

    assert not torch_private.modes_active()
    with Mode():
        assert torch_private.modes_active()
        with torch_private.unseen():
            assert not torch.is_grad_enabled()
            torch.ones(2) + 1
    assert Mode.calls == 0
    with torch.device("cpu"):
        assert torch_private.function_modes() == 1


def test_the_slot_of_compiled_calls():
    """A function in `_compiled_call_impl` runs in place of the call, from a frame whose `self` is the module."""
    import sys

    module, seen = nn.Linear(2, 1), []

    def call(*args, **kwargs):
        frame = sys._getframe(1)
        seen.append(frame.f_code is torch_private.calling_code and frame.f_locals["self"] is module)
        return module.forward(*args, **kwargs)

    assert torch_private.intercept(module, call)
    assert not torch_private.intercept(module, call)
    module(torch.ones(1, 2))
    assert seen == [True]
    torch_private.release(module, print)
    assert module._compiled_call_impl is call
    torch_private.release(module, call)
    assert module._compiled_call_impl is None


def test_modules_that_are_not_intercepted():
    """A class with its own idea of its state, or of its call, keeps it."""

    class State(nn.Linear):
        def __getstate__(self):
            return self.__dict__

    class Copy(nn.Linear):
        def __deepcopy__(self, memo):
            return self

    class Reduce(nn.Linear):
        def __reduce__(self):
            return nn.Linear, (1, 1)

    class Call(nn.Linear):
        def __call__(self, x):
            return super().__call__(x)

    for kind in (State, Copy, Reduce, Call):
        assert not torch_private.intercept(kind(1, 1), print)


def test_steps_are_found_on_the_stack():
    """The optimizer around an inner one is found from the inner one's pre-hook."""
    p = nn.Parameter(torch.ones(1))
    inner = torch.optim.SGD([p], 0.1)
    seen = []

    class Outer(torch.optim.Optimizer):
        def step(self, closure=None):
            inner.step(closure)

    outer = Outer([p], {})
    handle = inner.register_step_pre_hook(lambda *_: seen.append(torch_private.enclosing_step()))
    outer.step()
    inner.step()
    handle.remove()
    assert seen == [outer, None]


def test_symbols_are_told_from_numbers():
    """functorch's wrappers, meta tensors and tracing are recognised."""
    seen = []
    torch.func.vmap(lambda x: seen.append(torch_private.unreadable(x)) or x)(torch.ones(2))
    assert seen == [True]
    assert torch_private.unreadable(torch.ones(1, device="meta"))
    assert not torch_private.unreadable(torch.ones(1))
    torch.func.vmap(lambda x: seen.append(torch_private.functorch_active()) or x)(torch.ones(2))
    assert seen[1]
    assert not torch_private.functorch_active()
    assert torch_private.tracing_state() is None
    assert torch_private.compiling_now() is None


def test_foreach_kernels():
    """Copies convert, refuse None, and norms are taken in the dtype asked for."""
    targets = [torch.zeros(2), torch.zeros(1)]
    torch_private.foreach_copy(targets, [torch.ones(2, dtype=torch.float16), torch.ones(1, dtype=torch.float64)])
    assert [t.tolist() for t in targets] == [[1, 1], [1]]
    with pytest.raises((TypeError, RuntimeError)):
        torch_private.foreach_copy(targets, [torch.ones(2), None])
    (norm,) = torch_private.foreach_norm([torch.full((4,), 4e4, dtype=torch.float16)], 2, torch.float32)
    assert norm.item() == pytest.approx(8e4, rel=1e-3)


def test_the_fallbacks_do_the_same():
    """What stands in for a missing kernel gives the same result."""
    targets = [torch.zeros(2)]
    torch_private._copy_each(targets, [torch.ones(2)])
    assert targets[0].tolist() == [1, 1]
    (norm,) = torch_private._norm_each([torch.full((4,), 2.0)], 2, torch.float64)
    assert norm.item() == 4
    assert torch_private._private("_C._no_such_name", "instead") == "instead"
    torch_private.MISSING.remove("_C._no_such_name")


def test_where_backward_is_looked_up():
    """`Tensor.backward` finds `torch.autograd.backward` when it is called."""
    from unittest import mock

    with mock.patch.object(torch.autograd, "backward") as patched:
        torch.ones(1, requires_grad=True).sum().backward()
    assert patched.called


def test_scaler_methods():
    """The methods of GradScaler that are replaced, and where found_inf is handed to a fused optimizer."""
    for name in ("scale", "unscale_", "step", "update", "is_enabled", "get_scale"):
        assert callable(getattr(torch.amp.GradScaler, name))
    seen = []
    p = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([p], 0.1, fused=True)
    optimizer.register_step_pre_hook(lambda o, *_: seen.append((float(o.found_inf), float(o.grad_scale))))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale((p * 2).sum()).backward()
    scaler.step(optimizer)
    assert seen == [(0.0, 8.0)]


def test_a_node_leads_back_to_its_forward_operation():
    """The number of the node that is running is the one that the forward operation was about to use up."""
    seen: dict[str, list[tuple[str | None, int]]] = {"forward": [], "backward": []}

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            node = torch_private.current_node()
            if node is None:
                seen["forward"].append((func.overloadpacket.__name__, torch_private.next_sequence_number() - 1))
            else:
                seen["backward"].append((node.name(), node._sequence_nr()))
            return func(*args, **(kwargs or {}))

    x = torch.ones(2, requires_grad=True)
    with Mode():
        x.exp().sum().backward()
    forward, backward = dict(seen["forward"]), dict(seen["backward"])
    assert backward["ExpBackward0"] == forward["exp"]
    assert backward["SumBackward0"] == forward["sum"]
    assert torch_private.current_node() is None


def test_a_mode_is_switched_off_below_others():
    """A mode that others were put on top of goes, and they stay in their order."""

    class Mode(TorchDispatchMode):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            order.append(self.name)
            return func(*args, **(kwargs or {}))

    order: list[str] = []
    ours, first, second = Mode("ours"), Mode("first"), Mode("second")
    torch_private.add_mode(ours)
    with first, second:
        torch_private.drop_mode(ours)
        torch.ones(1)
    assert order == ["second", "first"]
    assert torch_private.dispatch_modes() == 0


def test_storage_identities_are_not_used_again():
    """As long as a weak reference to a storage is held, no other storage gets its identity."""
    from pytest_nanstab.attribution.history import Ledger, Made, storage_key

    ledger, made = Ledger(), Made(1, 1, "exp")
    tensor = torch.ones(64)
    key = storage_key(tensor)
    ledger.note(tensor, made)
    assert ledger.of(tensor.view(8, 8)) is made
    del tensor
    assert all(storage_key(torch.ones(64)) != key for _ in range(20))


def test_hooks_on_accumulated_gradients_are_seen():
    """Public to set, private to ask for."""
    weight = nn.Parameter(torch.ones(1))
    assert not torch_private.acts_on_arrival(weight)
    handle = weight.register_post_accumulate_grad_hook(lambda _: None)
    assert torch_private.acts_on_arrival(weight)
    handle.remove()
    assert not torch_private.acts_on_arrival(weight)


def test_hooks_of_ours_take_no_numbers():
    """The counter is torch's own: a hook registered in between gets the next of the others' numbers."""
    before = torch.utils.hooks.RemovableHandle.next_id
    module = nn.Linear(1, 1)
    with torch_private.numbered_apart():
        ours = module.register_forward_hook(lambda *_: None)
    theirs = module.register_forward_hook(lambda *_: None)
    assert ours.id >= 2**40
    assert theirs.id == before
