"""Small orders for tests, with overrides, and the strategies that draw them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from shardkit.order import Batch, EpochOrder, ShuffleOptions, Split, iterate_batches

MODES = ("none", "shard", "buffer", "global")


def make_order(
    counts: Sequence[int] = (7, 0, 13, 1, 30), epoch: int = 0, **options: Any
) -> EpochOrder:
    defaults: dict[str, Any] = {"shuffle": "buffer", "buffer_size": 8, "seed": 3, "num_lanes": 2}
    chosen = ShuffleOptions(**(defaults | options))
    return EpochOrder(np.array(counts, np.int64), chosen, epoch, fingerprint="test")


def all_ids(order: EpochOrder) -> np.ndarray:
    return order.at(np.arange(order.num_samples))


def rank_batches(
    order: EpochOrder,
    world_size: int,
    global_batch_size: int,
    remainder: Any = "keep",
    position: int = 0,
) -> list[list[Batch]]:
    """The batches of every rank."""
    return [
        list(
            iterate_batches(
                order,
                Split(
                    order.num_samples,
                    global_batch_size,
                    remainder,
                    rank,
                    world_size,
                    order.num_lanes,
                ),
                position,
            )
        )
        for rank in range(world_size)
    ]


def real_ids(batches: Sequence[Batch]) -> list[int]:
    return [i for batch in batches for i in batch.ids[~batch.is_pad].tolist()]


counts_lists = st.lists(st.integers(0, 40), min_size=1, max_size=12)


@st.composite
def orders(draw: st.DrawFn) -> EpochOrder:
    return make_order(
        draw(counts_lists),
        draw(st.integers(0, 3)),
        shuffle=draw(st.sampled_from(MODES)),
        buffer_size=draw(st.integers(1, 300)),
        seed=draw(st.integers(0, 5)),
        num_lanes=draw(st.integers(1, 9)),
    )
