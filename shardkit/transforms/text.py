"""Presets for captions and their embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from shardkit.errors import ConfigError, DecodeError
from shardkit.transforms.image import as_output
from shardkit.transforms.latents import as_floats
from shardkit.transforms.onfields import OnFields, is_empty, value_of
from shardkit.transforms.pipeline import Sample

__all__ = ["ChooseCaption", "PadTokens"]


@dataclass(frozen=True)
class PadTokens(OnFields):
    """Embeddings ``[n, d]`` → float32 ``[num_tokens, d]``: cut, or zeros added at the end.

    Attributes:
        num_tokens: how many.
        embeddings: where the field is a dict: the key of the embeddings.
        length: where the field is a dict: the key of the number of tokens before the padding
            (or of the place of the end-of-text token, which is counted in); later ones become 0.
        mask_into: field for the mask, bool ``[num_tokens]``, True where a token is.
        output: ``"torch"``, ``"numpy"``, or ``"auto"``: torch where installed.
    """

    num_tokens: int
    embeddings: str = "embeddings"
    length: str | None = None
    mask_into: str | None = None
    output: str = "auto"

    def __call__(self, sample: Sample) -> Sample:
        """Pad or cut each field."""
        for value, into in self.each(sample):
            tokens = as_floats(
                value_of(value, self.embeddings) if isinstance(value, dict) else value
            )
            if tokens.ndim != 2:
                raise DecodeError(f"embeddings have the shape {tokens.shape}, not [tokens, width]")
            count = len(tokens)
            if self.length is not None and isinstance(value, dict):
                count = min(count, int(value_of(value, self.length)))
            count = min(count, self.num_tokens)
            padded = np.zeros((self.num_tokens, tokens.shape[1]), np.float32)
            padded[:count] = tokens[:count]
            sample[into] = as_output(padded, self.output)
            if self.mask_into is not None:
                sample[self.mask_into] = as_output(np.arange(self.num_tokens) < count, self.output)
        return sample


@dataclass(frozen=True)
class ChooseCaption:
    """Draw one of several captions, and the embedding that goes with it.

    Attributes:
        texts: fields with captions; those that are absent or empty are not drawn.
        into: field for the caption.
        embeddings: fields with their embeddings, in the same order; None: there are none. A
            caption whose embedding is empty is not drawn.
        embedding_into: field for the embedding.
        probabilities: of each text; None: equal. Those of the texts there are, are scaled to 1.
        drop_rest: remove the fields that were drawn from.
        allow_missing: write None where all are empty, in place of an error.
    """

    texts: Sequence[str]
    into: str = "caption"
    embeddings: Sequence[str] | None = None
    embedding_into: str = "embedding"
    probabilities: Sequence[float] | None = None
    drop_rest: bool = False
    allow_missing: bool = False
    decodes: ClassVar[Any] = ()

    def __post_init__(self) -> None:
        for name, values in (
            ("embeddings", self.embeddings),
            ("probabilities", self.probabilities),
        ):
            if values is not None and len(values) != len(self.texts):
                raise ConfigError(f"{name} has {len(values)} entries for {len(self.texts)} texts")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Draw one."""
        draw = float(rng.random())  # one draw a sample, whatever there is to draw from
        shares = np.array(self.probabilities or [1.0] * len(self.texts), np.float64)
        there = [not self._lacks(sample, place) for place in range(len(self.texts))]
        shares[~np.array(there)] = 0
        if shares.sum() <= 0:
            if not self.allow_missing:
                raise DecodeError(f"all captions are empty: {', '.join(self.texts)}")
            chosen = None
        else:
            chosen = int(np.searchsorted(np.cumsum(shares) / shares.sum(), draw, side="right"))
        text = None if chosen is None else sample[self.texts[chosen]]
        names = [*self.texts, *(self.embeddings or ())]
        embedding = None
        if self.embeddings is not None and chosen is not None:
            embedding = sample[self.embeddings[chosen]]
        if self.drop_rest:
            sample = {name: value for name, value in sample.items() if name not in names}
        sample[self.into] = text
        if self.embeddings is not None:
            sample[self.embedding_into] = embedding
        return sample

    def _lacks(self, sample: Sample, place: int) -> bool:
        if is_empty(sample.get(self.texts[place])):
            return True
        return self.embeddings is not None and is_empty(sample.get(self.embeddings[place]))
