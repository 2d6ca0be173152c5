"""Threads, workers and other processes: what trains there, and what the test itself goes on to do."""

import atexit
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from common import both, net, sgd, spoiled, step, train
from torch.utils.data import DataLoader, Dataset


@both
def test_thread(bad):
    thread = threading.Thread(target=train, args=(bad,))
    thread.start()
    thread.join()


@both
def test_pool(bad):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(train, [False, False, bad, False]))


@both
def test_pool_beside_the_test(bad):
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(train) for _ in range(6)]
        train(bad)
        for future in futures:
            future.result()


LEFT = threading.Event()
DAEMONS = []


@atexit.register  # a session of some of these programs ends with the thread still at work
def stop():
    LEFT.set()
    for thread in DAEMONS:
        thread.join(10)


def until_the_end():
    model = net()
    optimizer = sgd(model)
    while not LEFT.wait(0.001):
        step(model, optimizer)


@both
def test_daemon_that_outlives_the_test(bad):
    DAEMONS.append(threading.Thread(target=until_the_end, daemon=True))
    DAEMONS[-1].start()
    train(bad)


@both
def test_after_the_daemon(bad):
    train(bad)


def test_daemons_end():
    LEFT.set()


class Rows(Dataset):
    def __init__(self, bad):
        self.bad = bad

    def __len__(self):
        return 8

    def __getitem__(self, index):
        row = torch.full((2,), float(index) / 8)
        train()  # in a worker, which nobody watches
        return spoiled(row, self.bad and index == 5)


@both
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_workers(bad):
    loader = DataLoader(Rows(bad), batch_size=2, num_workers=2, multiprocessing_context="fork", persistent_workers=True)
    model = net()
    optimizer = sgd(model)
    for _ in range(2):
        for batch in loader:
            step(model, optimizer, x=batch)
