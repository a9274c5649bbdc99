"""How transforms are called: in order, over what the one before gave, with the sample's generator.

Reasons: ``docs/decisions/401-transforms-take-the-sample-and-ask-for-rng.md``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np

from shardkit.errors import ConfigError, DecodeError

__all__ = ["Pipeline", "Sample", "Transform"]

Sample: TypeAlias = dict[str, Any]
Transform: TypeAlias = Callable[..., Sample | Iterable[Sample] | None]


class Pipeline:
    """Transforms in order, flattened and looked at once.

    Args:
        transforms: callables, or lists of them, nested at will. None and ``[]`` change nothing.

    Attributes:
        decodes: members that the transforms decode themselves, of those at the head of the list
            that say so (each preset has an attribute ``decodes``; the first transform without one
            ends the head, since it may expect a decoded object).

    Picklable when the transforms are.

    Raises:
        ConfigError: something in the list is not callable, or needs other arguments.
    """

    def __init__(self, transforms: Transform | Iterable[Any] | None = None) -> None:
        self.transforms = tuple(_flattened(transforms))
        self.takes_rng = tuple(_takes_rng(transform) for transform in self.transforms)
        self.decodes = _decoded_by_head(self.transforms)

    def __call__(self, sample: Sample, seed: int) -> list[Sample]:
        """Transform one sample; return what comes out: one sample, several, or none.

        Args:
            sample: not used afterwards by the caller (transforms may change it in place).
            seed: the sample's own seed, 0 <= seed < 2**64.

        Raises:
            DecodeError: a preset could not decode its field, which the message names.
            TypeError: a transform returned something else than a sample, samples, or None.
        """
        rng = np.random.Generator(np.random.PCG64(seed)) if any(self.takes_rng) else None
        samples = [sample]
        for transform, takes_rng in zip(self.transforms, self.takes_rng, strict=True):
            results: list[Sample] = []
            for item in samples:
                try:
                    result = transform(item, rng=rng) if takes_rng else transform(item)
                except DecodeError as error:
                    raise DecodeError(f"{_label(transform)}: {error}") from error
                if type(result) is dict:
                    results.append(result)
                else:
                    results.extend(_several(transform, result))
            samples = results
        return samples

    def __len__(self) -> int:
        return len(self.transforms)

    def __repr__(self) -> str:
        return f"Pipeline([{', '.join(map(_name, self.transforms))}])"


def _flattened(transforms: Any) -> Iterator[Transform]:
    if transforms is None:
        return
    if isinstance(transforms, Pipeline):
        yield from transforms.transforms
    elif callable(transforms):
        yield transforms
    elif isinstance(transforms, Iterable) and not isinstance(transforms, str | bytes | dict):
        for transform in transforms:
            yield from _flattened(transform)
    else:
        raise ConfigError(
            f"{transforms!r} is not a transform: give a callable of a sample (a dict), "
            f"or a list of them"
        )


def _takes_rng(transform: Transform) -> bool:
    try:
        parameters = inspect.signature(transform).parameters.values()
    except (TypeError, ValueError):  # some callables written in C have no signature
        return False
    # A preset that draws only with some options says so: making a generator takes 10 to 40 us.
    is_random = getattr(transform, "is_random", True)
    takes_rng = is_random and any(parameter.name == "rng" for parameter in parameters)
    needed = [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind not in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}
        and parameter.name != "rng"
    ]
    if len(needed) > 1:
        raise ConfigError(
            f"transform {_name(transform)} needs the arguments {', '.join(needed)}: a transform is "
            f"called with a sample, and with rng if a parameter has that name; "
            f"bind the others with functools.partial"
        )
    return takes_rng


def _several(transform: Transform, result: Any) -> Iterator[Sample]:
    if result is None:
        return
    if isinstance(result, dict):  # a subclass of dict
        yield result
        return
    if not isinstance(result, Iterable) or isinstance(result, str | bytes):
        raise TypeError(
            f"transform {_name(transform)} returned {type(result).__name__}: return a sample "
            f"(a dict), an iterable of samples, or None to drop the sample"
        )
    for item in result:
        if not isinstance(item, dict):
            raise TypeError(
                f"transform {_name(transform)} gave a {type(item).__name__} among its samples: "
                f"each must be a dict"
            )
        yield item


def _decoded_by_head(transforms: Iterable[Transform]) -> tuple[str, ...]:
    names: list[str] = []
    for transform in transforms:
        decodes = getattr(transform, "decodes", None)
        if decodes is None:
            break
        names.extend(decodes)
    return tuple(dict.fromkeys(names))


def _label(transform: Transform) -> str:
    """Name a preset and its fields, which are exts more often than not."""
    fields = getattr(transform, "fields", None)
    return type(transform).__name__ + (f" of {fields!r}" if fields else "")


def _name(transform: Transform) -> str:
    name = getattr(transform, "__qualname__", None)
    return name if isinstance(name, str) else repr(transform)
