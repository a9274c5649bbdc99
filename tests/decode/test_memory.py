from __future__ import annotations

import os
import pickle
import threading

import numpy as np
import pytest

from shardkit.decode import memory
from shardkit.decode.memory import BlockPool

SHAPE = (200, 300, 3)


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_memory_comes_back_when_nothing_refers_to_it() -> None:
    pool = BlockPool()
    first = pool.empty(SHAPE)
    place = address(first)
    del first
    assert address(pool.empty(SHAPE)) == place


@pytest.mark.parametrize("derive", [lambda a: a[3:5, ::2], lambda a: a.T, lambda a: a.reshape(-1)])
def test_memory_in_use_is_not_handed_out_again(derive) -> None:
    pool = BlockPool()
    array = pool.empty(SHAPE)
    view = derive(array)
    del array
    others = [pool.empty(SHAPE) for _ in range(5)]
    assert not any(np.shares_memory(view, other) for other in others)


def test_a_tensor_keeps_its_memory() -> None:
    import torch

    pool = BlockPool()
    array = pool.empty(SHAPE)
    array[...] = 7
    tensor = torch.from_numpy(array)[10:]
    del array
    for _ in range(5):
        pool.empty(SHAPE)[...] = 0
    assert (tensor == 7).all()


def test_no_more_than_the_limit_is_kept() -> None:
    pool = BlockPool(max_bytes=1_000_000)
    held = [pool.empty(SHAPE) for _ in range(20)]
    assert len({address(array) for array in held}) == 20
    assert pool._kept_bytes <= 1_000_000
    del held
    large = pool.empty((900, 1000))  # another size: room is made for it
    assert pool._kept_bytes <= 1_000_000
    place = address(large)
    del large
    assert address(pool.empty((900, 1000))) == place


def test_threads_never_share_a_block() -> None:
    pool = BlockPool()
    wrong: list[int] = []

    def work(mark: int) -> None:
        for _ in range(300):
            array = pool.empty(SHAPE)
            array[...] = mark
            if not (array == mark).all():
                wrong.append(mark)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_dtypes_and_pickling() -> None:
    pool = pickle.loads(pickle.dumps(BlockPool(max_bytes=5)))
    assert pool.max_bytes == 5
    array = BlockPool().empty((100, 300), np.float32)
    assert (array.shape, array.dtype, array.flags.c_contiguous) == ((100, 300), np.float32, True)
    assert BlockPool().empty((0, 3)).shape == (0, 3)


@pytest.mark.filterwarnings("ignore:This process")
def test_a_fork_while_the_pool_is_locked_does_not_hang() -> None:
    with memory._pool._lock:
        child = os.fork()
        if child == 0:
            memory.empty(SHAPE)
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
