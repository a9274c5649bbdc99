"""What presets have in common: the fields of a sample that they read and write."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import numpy as np

from shardkit.errors import ConfigError
from shardkit.transforms.pipeline import Sample

__all__ = ["Names", "OnFields", "drawn_from", "is_empty", "names_of", "number_of", "value_of"]

Names: TypeAlias = str | Sequence[str]


def names_of(names: Names) -> tuple[str, ...]:
    """Return one or several names as a tuple."""
    return (names,) if isinstance(names, str) else tuple(names)


def value_of(sample: Sample, name: str) -> Any:
    """Return a field, or say which fields there are."""
    try:
        return sample[name]
    except KeyError as error:
        there = ", ".join(repr(key) for key in sample)
        raise ConfigError(f"the sample has no field {name!r}; it has {there}") from error


def number_of(sample: Sample, value: Any) -> float:
    """Return a number, or the one in the field of that name."""
    return float(value_of(sample, value) if isinstance(value, str) else value)


def drawn_from(rng: np.random.Generator | None, preset: object) -> np.random.Generator:
    """Return the generator, or say that this preset draws from one."""
    if rng is None:
        raise ConfigError(f"{type(preset).__name__} is random: call it with rng")
    return rng


def is_empty(value: Any) -> bool:
    """Does a field hold nothing: None, NaN, or something of length 0?"""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return True
    if isinstance(value, np.ndarray):
        return value.size == 0
    try:
        return len(value) == 0
    except TypeError:
        return False


@dataclass(frozen=True)
class OnFields:
    """Presets of this kind do the same to each of their fields.

    Attributes:
        fields: name, or names, of the fields to read.
        into: names to write to, one for each field; None: in place.
        allow_missing: leave absent or None fields as None, in place of an error.
        decodes: (class) fields that the preset takes as undecoded bytes; see ``Pipeline``.
    """

    fields: Names
    into: Names | None = field(default=None, kw_only=True)
    allow_missing: bool = field(default=False, kw_only=True)
    decodes: ClassVar[Any] = ()

    def __post_init__(self) -> None:
        names = names_of(self.fields)
        if not names or (self.into is not None and len(names_of(self.into)) != len(names)):
            raise ConfigError(
                f"{type(self).__name__}: fields={self.fields!r} and into={self.into!r} must be "
                f"equally many names, at least one"
            )

    def each(self, sample: Sample) -> Iterator[tuple[Any, str]]:
        """Yield each field's value and the name to write the result to."""
        for name, into in zip(
            names_of(self.fields), names_of(self.into or self.fields), strict=True
        ):
            if self.allow_missing and sample.get(name) is None:
                sample[into] = None
            else:
                yield value_of(sample, name), into
