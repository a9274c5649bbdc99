"""From a sample of bytes to training samples: decode by ext, then the transforms."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from shardkit.decode import BytesSource, Decoders, Source
from shardkit.decode.registry import DecodeOption
from shardkit.errors import DecodeError
from shardkit.samples.source import RawMember, Sample
from shardkit.transforms.pipeline import Pipeline, Transform

__all__ = ["SampleMaker", "StageTimes"]


@dataclass(slots=True)
class StageTimes:
    """Seconds spent per stage (waiting for bytes, decoding, transforming, collating), and bytes."""

    fetch: float = 0.0
    decode: float = 0.0
    transform: float = 0.0
    collate: float = 0.0
    num_bytes: int = 0  # of the members that were read
    waiting: float = 0.0  # of ``fetch``, in which nothing was computed; where it was measured

    def add(self, other: StageTimes) -> None:
        """Add what another worker spent."""
        self.fetch += other.fetch
        self.decode += other.decode
        self.transform += other.transform
        self.collate += other.collate
        self.num_bytes += other.num_bytes
        self.waiting += other.waiting


class SampleMaker:
    """Decodes and transforms the samples of one dataset; thread-safe, picklable if they are.

    Args:
        decode: see ``Decoders``.
        transforms: see ``Pipeline``.
        dataset: URL, for messages.

    Attributes:
        is_identity: whether samples leave as they come.
    """

    def __init__(
        self, decode: DecodeOption, transforms: Iterable[Any] | Transform | None, dataset: str
    ) -> None:
        self._pipeline = Pipeline(transforms)
        self._decoders = Decoders(decode, raw=self._pipeline.decodes)
        self._leaves_bytes = decode is None and not self._pipeline.decodes
        self._dataset = dataset
        self.is_identity = self._leaves_bytes and not len(self._pipeline)

    def __call__(
        self, sample: Sample, exts: Iterable[str], seed: int, times: StageTimes
    ) -> list[Sample]:
        """What a sample becomes: one sample, several, or none.

        Args:
            sample: members as bytes; changed in place.
            exts: which of its entries are members.
            seed: the sample's own.
            times: adds up here what the stages take.

        Raises:
            DecodeError: a member can't be decoded; names dataset, shard, key and ext.
            Exception: whatever a transform of the user's raises.
        """
        if self._leaves_bytes:
            for name, value in sample.items():
                if type(value) is RawMember:
                    sample[name] = value.data
            if self.is_identity:
                return [sample]
        began = time.perf_counter()
        if not self._leaves_bytes:
            self._decode(sample, exts)
        decoded = time.perf_counter()
        times.decode += decoded - began
        if not len(self._pipeline):
            return [sample]
        key, url = sample.get("__key__"), sample.get("__url__")  # transforms may drop them
        try:
            made = self._pipeline(sample, seed)
        except DecodeError as error:
            raise self._placed(error, url, key) from error
        times.transform += time.perf_counter() - decoded
        return made

    def _decode(self, sample: Sample, exts: Iterable[str]) -> None:
        for name, value in sample.items():
            if type(value) is RawMember:
                sample[name] = self._from_raw(sample, name, value)
        for ext in exts:
            data = sample.get(ext)
            if data is not None:
                sample[ext] = self._decoded(sample, ext, ext, data)

    def _decoded(self, sample: Sample, name: str, ext: str, data: bytes | Source) -> Any:
        decoder: Callable[[Any], Any] | None = self._decoders.for_ext(ext, name)
        if isinstance(data, bytes) and self._decoders.takes_source(ext, name):
            source = BytesSource(data, f"{sample['__url__']}/{sample['__key__']}.{name}")
            return source if decoder is None else self._run(decoder, sample, source)
        return data if decoder is None else self._run(decoder, sample, data)

    def _from_raw(self, sample: Sample, name: str, member: RawMember) -> Any:
        """A raw member decoded by its own ext, or by a decoder that the user gave its name."""
        ext = name if self._decoders.is_named(name) else member.ext
        return self._decoded(sample, name, ext, member.data)

    def _run(self, decoder: Callable[[Any], Any], sample: Sample, data: Any) -> Any:
        try:
            return decoder(data)
        except DecodeError as error:
            raise self._placed(error, sample["__url__"], sample["__key__"]) from error

    def _placed(self, error: DecodeError, url: Any, key: Any) -> DecodeError:
        return DecodeError(f"dataset {self._dataset}: {url}: key {key!r}: {error}")
