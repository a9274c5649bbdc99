"""Results of expensive transforms, kept in the cache that files are kept in."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

from xxhash import xxh3_128

from shardkit.errors import ConfigError
from shardkit.storage.cache import Cache
from shardkit.transforms.pipeline import Pipeline, Sample, Transform

__all__ = ["CacheTransform"]


class CacheTransform:
    """Calls a transform once for each different input, and keeps what it gave on local disk.

    The key is a hash of the input's contents, so a sample that changed is transformed anew; a
    transform that changed is told by ``version``.

    Args:
        transform: deterministic; from a sample to a sample, samples or None.
        cache_dir: the cache's folder; naming a dataset's ``dst`` shares its room.
        cache_limit: bytes that the folder never exceeds, files and results together, as for
            datasets: give the same to all.
        version: of the transform's code and settings; another one finds nothing of before.
        fields: what the transform looks at, where that is not the whole sample; all else passes by
            and is no part of the key.

    Picklable if the transform is. Results are pickled: who can write the folder is trusted.

    Raises:
        ConfigError: the transform is random (has a parameter ``rng``): what it draws must differ.
    """

    def __init__(
        self,
        transform: Transform,
        cache_dir: str,
        cache_limit: int | str | None,
        *,
        version: str = "1",
        fields: Sequence[str] | None = None,
    ) -> None:
        self._pipeline = Pipeline([transform])
        if any(self._pipeline.takes_rng):
            raise ConfigError(
                f"{transform!r} draws from rng: cached, it would draw the same for ever. Cache "
                "what comes before it"
            )
        self._cache = Cache(cache_dir, cache_limit)
        self._name = f"{_name(transform)}\n{version}"
        self._fields = fields

    def __call__(self, sample: Sample) -> list[Sample]:
        """What the transform makes of the sample, from the cache if it was made before."""
        rest: Sample = {}
        if self._fields is not None:
            rest = {name: value for name, value in sample.items() if name not in self._fields}
            sample = {name: sample[name] for name in self._fields if name in sample}
        key = f"transform\n{self._name}\n{_hash(sample)}"

        def make() -> bytes:
            return pickle.dumps(self._pipeline(sample, 0), protocol=5)

        made: list[Sample] = pickle.loads(self._cache.get(key, make))
        return [{**rest, **result} for result in made]

    def __repr__(self) -> str:
        return f"CacheTransform({self._pipeline!r})"


def _hash(sample: Sample) -> str:
    """Of all that the sample holds; arrays are hashed where they lie."""
    digest = xxh3_128()
    large: list[pickle.PickleBuffer] = []
    ordered: list[tuple[str, Any]] = sorted(sample.items())
    digest.update(pickle.dumps(ordered, protocol=5, buffer_callback=large.append))
    for buffer in large:
        digest.update(buffer.raw())
    return digest.hexdigest()


def _name(transform: Transform) -> str:
    """Of a function, or of a class of callables and its settings."""
    own = getattr(transform, "__qualname__", None)
    if own is not None:
        return f"{transform.__module__}.{own}"
    kind = type(transform)
    return f"{kind.__module__}.{kind.__qualname__} {_hash(dict(vars(transform)))}"
