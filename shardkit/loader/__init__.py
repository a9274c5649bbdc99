"""Batches: in canonical order whoever makes them, with a state that is exact on any world size.

``loader``   ``DataLoader``: what people use
``work``     one batch made: read, decode, transform, collate
``workers``  the consumer itself, threads, or processes
``collate``  samples → a batch
``stats``    live figures
"""

from shardkit.loader.collate import collate
from shardkit.loader.loader import DataLoader

__all__ = ["DataLoader", "collate"]
