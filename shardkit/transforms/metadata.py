"""Presets for metadata: dicts and labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from shardkit.decode.source import read_all
from shardkit.decode.text import decode_json
from shardkit.errors import ConfigError, DecodeError
from shardkit.transforms.image import as_output
from shardkit.transforms.onfields import OnFields, names_of
from shardkit.transforms.pipeline import Sample

__all__ = ["ClassToId", "MergeFields", "OneHot", "ParseJson", "PickField"]

_CONFLICTS = ("raise", "keep", "overwrite")


@dataclass(frozen=True)
class ParseJson(OnFields):
    """JSON as bytes, text or a source → its value; what is parsed already passes as it is."""

    @property
    def decodes(self) -> tuple[str, ...]:
        """The fields that a dataset may leave undecoded."""
        return names_of(self.fields)

    def __call__(self, sample: Sample) -> Sample:
        """Parse each field."""
        for value, into in self.each(sample):
            if isinstance(value, dict | list | int | float | None):
                sample[into] = value
                continue
            data = value.encode() if isinstance(value, str) else read_all(value)
            try:
                sample[into] = decode_json(data)
            except ValueError as error:
                raise DecodeError(f"it is not JSON: {error}") from error
        return sample


@dataclass(frozen=True)
class MergeFields(OnFields):
    """Put the entries of a dict into the sample itself.

    Attributes:
        on_conflict: where the sample has a field of that name: ``"raise"``, ``"keep"`` the
            sample's, or ``"overwrite"`` it.
        drop: remove the dict afterwards.
    """

    on_conflict: str = "raise"
    drop: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.on_conflict not in _CONFLICTS:
            raise ConfigError(
                f"on_conflict={self.on_conflict!r}: give one of {', '.join(_CONFLICTS)}"
            )

    def __call__(self, sample: Sample) -> Sample:
        """Merge each field."""
        for value, name in list(self.each(sample)):
            both = [key for key in value if key in sample]
            if both and self.on_conflict == "raise":
                raise ConfigError(
                    f"field {name!r} has {', '.join(map(repr, both))}, which the sample has too; "
                    f'give on_conflict="keep" or "overwrite"'
                )
            if self.drop:
                sample.pop(name, None)
            kept = {key: sample[key] for key in both} if self.on_conflict == "keep" else {}
            sample.update(value)
            sample.update(kept)
        return sample


@dataclass(frozen=True)
class PickField(OnFields):
    """A dict → one of its entries; ``path`` may lead deeper: ``"author.name"``.

    With ``allow_missing``, a missing entry gives None.
    """

    path: str

    def __call__(self, sample: Sample) -> Sample:
        """Pick from each field."""
        for value, into in self.each(sample):
            picked = value
            for part in self.path.split("."):
                if not isinstance(picked, dict) or part not in picked:
                    if not self.allow_missing:
                        there = list(picked) if isinstance(picked, dict) else type(picked).__name__
                        raise DecodeError(f"it has no entry {self.path!r}: at {part!r} are {there}")
                    picked = None
                    break
                picked = picked[part]
            sample[into] = picked
        return sample


@dataclass(frozen=True)
class ClassToId(OnFields):
    """A class name → its number.

    Attributes:
        mapping: from name to number, or a function of the name.
    """

    mapping: Mapping[str, int] | Callable[[str], int]

    def __call__(self, sample: Sample) -> Sample:
        """Look each field up."""
        for value, into in self.each(sample):
            if callable(self.mapping):
                sample[into] = self.mapping(value)
            elif value in self.mapping:
                sample[into] = self.mapping[value]
            else:
                raise DecodeError(
                    f"class {value!r} is not among the {len(self.mapping)} that are known"
                )
        return sample


@dataclass(frozen=True)
class OneHot(OnFields):
    """A number, or an array of numbers ``[...]`` → float32 ``[..., num_classes]``."""

    num_classes: int
    output: str = "auto"

    def __call__(self, sample: Sample) -> Sample:
        """Encode each field."""
        for value, into in self.each(sample):
            ids = np.asarray(value)
            if ids.dtype.kind not in "iu" or (ids < 0).any() or (ids >= self.num_classes).any():
                raise DecodeError(
                    f"class {value!r} is not a number from 0 to {self.num_classes - 1}"
                )
            sample[into] = as_output(np.eye(self.num_classes, dtype=np.float32)[ids], self.output)
        return sample
