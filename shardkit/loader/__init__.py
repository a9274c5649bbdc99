"""Batches: in canonical order whoever makes them, with a state that is exact on any world size.

``loader``     ``DataLoader``: what people use (``arguments``: what it is given, checked)
``mix``        ``Mix``: several data sets as one
``plan``       which batches there are, of a data set (``mix_plan``: of a mixture)
``pipeline``   batches asked for ahead, across the ends of epochs
``work``       one batch made: read, decode, transform, collate
``workers``    the consumer itself, or threads
``processes``  processes; ``serve`` runs in them, ``segments`` is the memory between
``collate``    samples to a batch
``pinned``     page-locked memory
``stats``      live figures
"""

from shardkit.loader.collate import collate
from shardkit.loader.loader import DataLoader
from shardkit.loader.mix import Mix, Stream
from shardkit.loader.processes import WorkerLostError

__all__ = ["DataLoader", "Mix", "Stream", "WorkerLostError", "collate"]
