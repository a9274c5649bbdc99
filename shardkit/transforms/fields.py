"""Presets that move fields about and check them, whatever they hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from shardkit.decode.source import read_all
from shardkit.errors import ConfigError, DecodeError
from shardkit.transforms.image import as_output
from shardkit.transforms.onfields import Names, OnFields, is_empty, names_of, value_of
from shardkit.transforms.pipeline import Sample

__all__ = [
    "Cast",
    "CheckFields",
    "DropFields",
    "FirstNonEmpty",
    "Gather",
    "KeepFields",
    "LoadBytes",
    "Rename",
    "SetFields",
]


@dataclass(frozen=True)
class Rename:
    """Give fields other names.

    Attributes:
        names: from old to new.
        strict: an absent field is an error.
    """

    names: Mapping[str, str]
    strict: bool = True
    decodes: ClassVar[Any] = ()

    def __call__(self, sample: Sample) -> Sample:
        """Rename, all at once, so that names can be swapped."""
        if self.strict:
            for name in self.names:
                value_of(sample, name)
        return {self.names.get(name, name): value for name, value in sample.items()}


@dataclass(frozen=True)
class KeepFields:
    """Leave only these fields, and those whose names start with two underscores."""

    names: Names
    decodes: ClassVar[Any] = ()

    def __call__(self, sample: Sample) -> Sample:
        """Keep them; an absent one is an error."""
        names = names_of(self.names)
        for name in names:
            value_of(sample, name)
        return {
            name: value for name, value in sample.items() if name in names or name.startswith("__")
        }


@dataclass(frozen=True)
class DropFields:
    """Leave these fields out, where they are."""

    names: Names
    decodes: ClassVar[Any] = ()

    def __call__(self, sample: Sample) -> Sample:
        """Drop them."""
        names = names_of(self.names)
        return {name: value for name, value in sample.items() if name not in names}


@dataclass(frozen=True)
class SetFields:
    """Write constants: the same for every sample."""

    values: Mapping[str, Any]
    decodes: ClassVar[Any] = ()

    def __call__(self, sample: Sample) -> Sample:
        """Write them."""
        return sample | dict(self.values)


@dataclass(frozen=True)
class Cast(OnFields):
    """Numbers, arrays or tensors → another type, such as ``"float32"``."""

    dtype: str = "float32"

    def __call__(self, sample: Sample) -> Sample:
        """Cast each field."""
        for value, into in self.each(sample):
            if hasattr(value, "numpy") and hasattr(value, "to"):  # a tensor, whatever its library
                import torch

                sample[into] = value.to(getattr(torch, self.dtype))
            else:
                cast = np.asarray(value).astype(self.dtype)
                sample[into] = cast if isinstance(value, np.ndarray) else cast[()]
        return sample


@dataclass(frozen=True)
class CheckFields:
    """Require fields to be there, not to be empty, and to be of a type.

    Attributes:
        required: names, or a mapping from names to types.
        allow_empty: accept None, NaN, and what has length 0.
        drop_others: leave the rest out, as ``KeepFields`` does.

    Raises:
        DecodeError: a field is not as it should be, so ``on_error="skip"`` leaves the sample out.
    """

    required: Names | Mapping[str, type | tuple[type, ...]]
    allow_empty: bool = False
    drop_others: bool = False
    decodes: ClassVar[Any] = ()

    def __call__(self, sample: Sample) -> Sample:
        """Check every field, and name all that fail."""
        is_typed = isinstance(self.required, Mapping)
        names = tuple(self.required) if is_typed else names_of(self.required)  # type: ignore[arg-type]
        wrong = list(self._faults(sample, names))
        if wrong:
            raise DecodeError(f"the sample is not as required: {'; '.join(wrong)}")
        return KeepFields(names)(sample) if self.drop_others else sample

    def _faults(self, sample: Sample, names: Iterable[str]) -> Iterable[str]:
        for name in names:
            if name not in sample:
                yield f"{name!r} is absent"
            elif not self.allow_empty and is_empty(sample[name]):
                yield f"{name!r} is empty"
            elif isinstance(self.required, Mapping) and not isinstance(
                sample[name], self.required[name]
            ):
                yield f"{name!r} is of type {type(sample[name]).__name__}"


@dataclass(frozen=True)
class FirstNonEmpty:
    """Write the first of several fields that is there and not empty.

    Attributes:
        fields: names, the preferred one first.
        into: name to write to.
        allow_missing: write None where all are empty, in place of an error.
    """

    fields: Names
    into: str
    allow_missing: bool = False
    decodes: ClassVar[Any] = ()

    def __call__(self, sample: Sample) -> Sample:
        """Find it."""
        for name in names_of(self.fields):
            if not is_empty(sample.get(name)):
                sample[self.into] = sample[name]
                return sample
        if not self.allow_missing:
            raise DecodeError(f"all of {', '.join(names_of(self.fields))} are empty")
        sample[self.into] = None
        return sample


@dataclass(frozen=True)
class Gather:
    """Put several fields into one.

    Attributes:
        fields: their names.
        into: name to write to.
        kind: ``"dict"``, ``"list"``, or ``"stack"``: equal shapes ``[...]`` → ``[n, ...]``.
        drop: remove the fields.
        output: of ``"stack"``: ``"torch"``, ``"numpy"``, or ``"auto"``: torch where installed.
    """

    fields: Names
    into: str
    kind: str = "dict"
    drop: bool = False
    output: str = "auto"
    decodes: ClassVar[Any] = ()

    def __post_init__(self) -> None:
        if self.kind not in {"dict", "list", "stack"}:
            raise ConfigError(f'kind={self.kind!r}: give "dict", "list" or "stack"')

    def __call__(self, sample: Sample) -> Sample:
        """Gather them."""
        values = {name: value_of(sample, name) for name in names_of(self.fields)}
        gathered: Any = values
        if self.kind == "list":
            gathered = list(values.values())
        elif self.kind == "stack":
            gathered = as_output(np.stack([np.asarray(v) for v in values.values()]), self.output)
        if self.drop:
            sample = DropFields(self.fields)(sample)
        return sample | {self.into: gathered}


@dataclass(frozen=True)
class LoadBytes(OnFields):
    """A local path or a source → its bytes."""

    @property
    def decodes(self) -> tuple[str, ...]:
        """The fields that a dataset may leave undecoded."""
        return names_of(self.fields)

    def __call__(self, sample: Sample) -> Sample:
        """Read each field."""
        for value, into in self.each(sample):
            sample[into] = bytes(read_all(value))
        return sample
