"""What a spawned process trains on is not watched; what it hands back is."""

import multiprocessing

from common import X, both, net, sgd, step, train
from processes import Rows
from torch.utils.data import DataLoader


def trains_on_nan():
    train(True)


@both
def test_spawned_process(bad):
    process = multiprocessing.get_context("spawn").Process(target=trains_on_nan)
    process.start()
    process.join()
    assert process.exitcode == 0
    train(bad)
    assert X.shape == (4, 2)


@both
def test_spawned_workers(bad):
    model = net()
    optimizer = sgd(model)
    for batch in DataLoader(Rows(bad), batch_size=2, num_workers=1, multiprocessing_context="spawn"):
        step(model, optimizer, x=batch)
