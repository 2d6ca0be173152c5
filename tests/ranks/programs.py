"""Trainings on several ranks, as people write them; each test says in its docstring what it must find, or "healthy"."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from pytest_nanstab import NonFiniteError, StabilityError, TrainingSetup, assert_finite, stability_suite, watch

try:
    from torch.distributed.fsdp import fully_shard
except ImportError:  # before torch 2.6 it has another name, and works on CUDA alone
    fully_shard = None

needs_fsdp = pytest.mark.skipif(fully_shard is None, reason="this torch has no fully_shard")


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def batches(count=6, *, seed=None):
    generator = torch.Generator().manual_seed(dist.get_rank() if seed is None else seed)
    return [torch.randn(8, 4, generator=generator) for _ in range(count)]


def train(model, *, steps=6, optimizer=None, loss_of=None, before_step=None, seed=None):
    optimizer = optimizer or torch.optim.Adam(model.parameters(), 1e-2)
    loss_of = loss_of or (lambda output, step: output.pow(2).mean())
    for step, x in enumerate(batches(steps, seed=seed), 1):
        optimizer.zero_grad()
        loss_of(model(x), step).backward()
        if before_step is not None:
            before_step(step)
        optimizer.step()


def average(model, leave_out=()):
    for name, parameter in model.named_parameters():
        if name not in leave_out:
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()


# -- DistributedDataParallel -------------------------------------------------------------------------------------------


def test_ddp():
    """healthy"""
    with watch() as run:
        train(DistributedDataParallel(net()))
    assert run.grad_norm == pytest.approx(reference_norms(), rel=1e-4)


def test_ddp_batch_norm_and_accumulation():
    """healthy"""
    model = DistributedDataParallel(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for first, second in zip(batches(6), batches(6), strict=True):
        optimizer.zero_grad()
        with model.no_sync():
            model(first).pow(2).mean().backward()
        model(second).pow(2).mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def test_ddp_nan_on_one_rank():
    """nonfinite-loss rank 1"""

    def loss_of(output, step):
        loss = output.pow(2).mean()
        return torch.log(loss - 1e9) if step == 3 and dist.get_rank() == 1 else loss

    train(DistributedDataParallel(net()), loss_of=loss_of)


def test_ddp_bad_batch_on_one_rank():
    """nonfinite-input rank 1"""
    model = DistributedDataParallel(net())
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for step, x in enumerate(batches(), 1):
        if step == 4 and dist.get_rank() == 1:
            x[2, 1] = float("nan")
        optimizer.zero_grad()
        model(x).pow(2).mean().backward()
        optimizer.step()


def test_ddp_nan_in_eval_on_one_rank():
    """nonfinite-output rank 1"""
    model = DistributedDataParallel(nn.Sequential(nn.Linear(4, 1), nn.Flatten(0), nn.LogSigmoid()))
    train(model)
    model.eval()
    with torch.no_grad():
        x = batches(1)[0]
        model(x * 1e38 * 1e3 * 0 if dist.get_rank() == 5 else x)
        Roots()(torch.full((2,), -1.0 if dist.get_rank() == 1 else 1.0))


class Roots(nn.Module):
    def forward(self, x):
        return torch.sqrt(x)


def test_ddp_passed_by():
    """rank-drift"""
    model = DistributedDataParallel(net())
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for x in batches():
        optimizer.zero_grad()
        model.module(x).pow(2).mean().backward()
        optimizer.step()


def test_ddp_without_sync():
    """rank-drift"""
    model = DistributedDataParallel(net())
    with model.no_sync():
        train(model)


def test_ddp_learning_rates_differ():
    """rank-drift"""
    model = DistributedDataParallel(net())
    train(model, optimizer=torch.optim.SGD(model.parameters(), 0.1 if dist.get_rank() else 0.11))


def test_ddp_in_groups_of_their_own():
    """healthy: each group trains a model of its own"""
    groups = [dist.new_group([rank]) for rank in range(dist.get_world_size())]
    train(DistributedDataParallel(net(seed=dist.get_rank()), process_group=groups[dist.get_rank()]))


# -- averaged by hand --------------------------------------------------------------------------------------------------


def test_by_hand():
    """healthy"""
    model = net()
    train(model, before_step=lambda _: average(model))


def test_by_hand_never_broadcast():
    """rank-drift"""
    model = net(seed=dist.get_rank())
    train(model, before_step=lambda _: average(model))


def test_by_hand_one_left_out():
    """rank-drift"""
    model = net()
    train(model, before_step=lambda _: average(model, leave_out=["2.bias"]))


def test_step_skipped_on_one_rank():
    """rank-drift"""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step, x in enumerate(batches(), 1):
        optimizer.zero_grad()
        model(x).pow(2).mean().backward()
        average(model)
        if step != 4 or dist.get_rank() == 0:
            optimizer.step()


def test_experts_of_their_own():
    """healthy: experts differ on purpose, the rest is averaged"""
    shared, expert = nn.Linear(4, 4), net(seed=10 + dist.get_rank())
    with torch.no_grad():
        for parameter in shared.parameters():
            parameter.fill_(0.1)
    model = nn.Sequential(shared, expert)
    train(
        model, before_step=lambda _: average(model, leave_out=[n for n, _ in model.named_parameters() if n[0] == "1"])
    )


@pytest.mark.parametrize("seed", [0, None])
def test_independent_models(seed):
    """healthy: every rank trains for itself"""
    train(net(seed=dist.get_rank() if seed is None else seed))


def test_the_same_on_all_ranks():
    """healthy"""
    train(net(), seed=3)


def test_local_sgd():
    """healthy: parameters are averaged now and then, and differ in between"""
    model = net()
    train(model, steps=7, before_step=lambda step: _average_parameters(model) if step % 3 == 0 else None)


def _average_parameters(model):
    for parameter in model.parameters():
        dist.all_reduce(parameter.data)
        parameter.data /= dist.get_world_size()


# -- sharded -----------------------------------------------------------------------------------------------------------


def sharded(seed=0):
    model = net(seed)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def tensor_parallel(seed=0):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return parallelize_module(net(seed), mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


def reference_norms(model_of=net, ranks=(0, 1), *, steps=6, bound=None):
    """The norms of a plain training on what all the ranks see."""
    model, norms = model_of(), []
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    parts = [batches(steps, seed=rank) for rank in ranks]
    for several in zip(*parts, strict=True):
        optimizer.zero_grad()
        sum(model(x).pow(2).mean() for x in several).div(len(several)).backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), bound or float("inf"))))
        optimizer.step()
    return norms


@needs_fsdp
def test_fsdp():
    """healthy"""
    train(sharded())


@needs_fsdp
def test_fsdp_norms():
    """healthy"""
    with watch() as run:
        train(sharded())
    assert run.grad_norm == pytest.approx(reference_norms(), rel=1e-4)


@needs_fsdp
def test_fsdp_norms_with_a_clip():
    """healthy"""
    model = sharded()
    with watch() as run:
        train(model, before_step=lambda _: nn.utils.clip_grad_norm_(model.parameters(), 0.05))
    assert run.grad_norm == pytest.approx(reference_norms(bound=0.05), rel=1e-4)
    assert run.clipped_grad_norm == pytest.approx([0.05] * 6, rel=1e-3)


@needs_fsdp
def test_fsdp_limit_within():
    """healthy"""
    with watch(max_grad_norm=1.01 * max(reference_norms())):
        train(sharded())


@needs_fsdp
def test_fsdp_limit():
    """limit"""
    with watch(max_grad_norm=0.99 * max(reference_norms())):
        train(sharded())


@needs_fsdp
def test_fsdp_nan_on_one_rank():
    """nonfinite-loss rank 0"""

    def loss_of(output, step):
        return (output - output).div(0).sum() if step == 2 and dist.get_rank() == 0 else output.pow(2).mean()

    train(sharded(), loss_of=loss_of)


@needs_fsdp
def test_copies_of_shards():
    """healthy"""
    model = net()
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(), 1), mesh_dim_names=("copies", "shards")))
    with watch() as run:
        train(model)
    assert run.grad_norm == pytest.approx(reference_norms(), rel=1e-4)


def test_tensor_parallel():
    """healthy"""
    with watch() as run:
        train(tensor_parallel(), seed=7)
    assert run.grad_norm == pytest.approx(reference_norms(ranks=(7,)), rel=1e-4)


def test_tensor_parallel_nan():
    """nonfinite-loss"""
    train(tensor_parallel(), seed=7, loss_of=lambda output, step: output.pow(2).mean().mul(-1).add(-step).log())


# -- explicit tests ----------------------------------------------------------------------------------------------------


def test_raised_on_all_ranks():
    """healthy: the finding is consumed on each of them"""
    rank = dist.get_rank()
    with pytest.raises(NonFiniteError, match=r"rank 1: NaN in the loss at step 2"), watch():
        train(
            DistributedDataParallel(net()), loss_of=lambda out, s: out.mean() * (float("nan") if s == 2 and rank else 1)
        )
    dist.barrier()


@pytest.mark.nanstab(max_loss=100)
def test_limit_on_one_rank():
    """limit rank 0"""
    train(DistributedDataParallel(net()), loss_of=lambda out, step: out.pow(2).mean() * (1 if dist.get_rank() else 1e5))


@pytest.mark.xfail(raises=NonFiniteError, strict=True)
def test_known_instability():
    """xfailed"""
    train(DistributedDataParallel(net()), loss_of=lambda out, s: out.mean() * (float("nan") if dist.get_rank() else 1))


@pytest.mark.skipif("RANK" in __import__("os").environ and __import__("os").environ["RANK"] == "1", reason="one rank")
def test_on_one_rank_alone():
    """healthy"""
    train(net())


def test_fails_by_itself_on_one_rank():
    """nonfinite-loss rank 1, and an assertion"""
    rank = dist.get_rank()
    train(DistributedDataParallel(net()), loss_of=lambda out, s: out.mean() * (float("nan") if s == 2 and rank else 1))
    assert rank == 1


def test_driver(nanstab):
    """healthy"""
    model = DistributedDataParallel(net())
    run = nanstab.train(setup_of(model), steps=8)
    assert run.steps == 8


def test_driver_nan(nanstab):
    """nonfinite-loss rank 1"""
    scale = float("inf") if dist.get_rank() else 1.0
    with pytest.raises(StabilityError, match="rank 1"):
        nanstab.train(setup_of(DistributedDataParallel(net()), lambda m, x: (m(x) * scale).mean() - scale), steps=8)


def setup_of(model, loss=None):
    loss = loss or (lambda m, x: m(x).pow(2).mean())
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=batches())


@stability_suite(steps=12)
def test_suite():
    """healthy"""
    return setup_of(DistributedDataParallel(net()))


@needs_fsdp
@stability_suite(steps=12, checks=["finite_steps", "gradient_bounds"])
def test_sharded_suite():
    """healthy"""
    return setup_of(sharded())


@stability_suite(steps=6, checks=["finite_steps", "finite_eval"])
def test_broken_suite():
    """nonfinite-loss rank 1"""
    rank = dist.get_rank()
    return setup_of(DistributedDataParallel(net()), lambda m, x: torch.sqrt(m(x).pow(2).mean() - rank))


# -- what people do besides --------------------------------------------------------------------------------------------


def test_guard_skips_on_all_ranks():
    """healthy: the averaged gradient is NaN everywhere, and nobody steps"""
    model = DistributedDataParallel(net())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step, x in enumerate(batches(8)):
        optimizer.zero_grad()
        (model(x).pow(2).mean() * (float("nan") if step == 3 and dist.get_rank() == 1 else 1)).backward()
        if torch.isfinite(nn.utils.clip_grad_norm_(model.parameters(), 1.0)):
            optimizer.step()


def test_loss_scale():
    """healthy"""
    model, scaler = DistributedDataParallel(net()), torch.amp.GradScaler("cpu")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for x in batches(8):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(x).pow(2).mean()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()


def test_frozen_and_compressed():
    """healthy: a frozen layer, gradients averaged in float16"""
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

    model = net()
    model[0].requires_grad_(False)
    model = DistributedDataParallel(model)
    model.register_comm_hook(None, default_hooks.fp16_compress_hook)
    train(model, optimizer=torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2))


def test_line_search():
    """healthy"""
    model = DistributedDataParallel(net())
    optimizer = torch.optim.LBFGS(model.parameters(), 0.1, line_search_fn="strong_wolfe", max_iter=3)
    for x in batches(4, seed=1):

        def closure(x=x):
            optimizer.zero_grad()
            loss = model(x).pow(2).mean()
            loss.backward()
            return loss

        optimizer.step(closure)


def test_optimizer_state_in_parts():
    """healthy: each rank steps its part and sends it to the others"""
    optim = pytest.importorskip("torch.distributed.optim")
    model = DistributedDataParallel(net())
    optimizer = optim.ZeroRedundancyOptimizer(model.parameters(), optimizer_class=torch.optim.Adam, lr=1e-2)
    with watch() as run:
        train(model, optimizer=optimizer)
    assert run.grad_norm == pytest.approx(reference_norms(), rel=1e-4)


def test_stages_of_a_pipeline():
    """healthy: other modules on other ranks"""
    train(nn.Linear(4, 4) if dist.get_rank() == 0 else nn.Linear(4, 2))


def test_first_version_of_sharding():
    """healthy"""
    from torch.distributed.fsdp import FullyShardedDataParallel

    with watch() as run:
        train(FullyShardedDataParallel(net(), device_id=torch.device("cpu")))
    assert any("this rank's shards" in note for note in run.notes)


def test_evaluated_on_one_rank():
    """healthy"""
    model = DistributedDataParallel(net())
    train(model)
    if dist.get_rank() == 0:
        with torch.no_grad():
            model.module.eval()(batches(1)[0])
    dist.barrier()


def test_assertion_on_one_rank():
    """nonfinite-output rank 1, by an assertion"""
    train(DistributedDataParallel(net()))
    assert_finite(torch.tensor([float("nan") if dist.get_rank() == 1 else 1.0]), name="scores")


@stability_suite(steps=4, checks=["finite_data"])
def test_data_of_one_rank():
    """bad-data rank 1"""
    setup = setup_of(DistributedDataParallel(net()))
    if dist.get_rank() == 1:
        setup.batches[3][0, 0] = float("nan")
    return setup


@stability_suite(steps=4, checks=["finite_eval"])
def test_evaluation_of_one_rank():
    """nonfinite-loss rank 1"""
    rank = dist.get_rank()
    return setup_of(
        DistributedDataParallel(net()),
        lambda m, x: m(x).pow(2).mean() * (1 if m.training or rank == 0 else float("nan")),
    )


def test_no_search(nanstab):
    """healthy: it is refused before any rank could wait for another"""
    with pytest.raises(RuntimeError, match="what one process sees"):
        nanstab.search(setup_of(DistributedDataParallel(net())))


@needs_fsdp
@stability_suite(steps=4, checks=["finite_eval"])
def test_sharded_evaluation_of_one_rank():
    """nonfinite-loss rank 1: whose loss is broken has to gather weights with the others in every batch"""
    rank = dist.get_rank()
    return setup_of(sharded(), lambda m, x: m(x).pow(2).mean() * (1 if m.training or rank == 0 else float("nan")))


@stability_suite(steps=12)
def test_tensor_parallel_suite():
    """healthy"""
    return setup_of(tensor_parallel())


@needs_fsdp
@stability_suite(steps=12, precision=["bf16-mixed"])
def test_whole_sharded_suite():
    """healthy"""
    return setup_of(sharded())
