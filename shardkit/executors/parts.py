"""A part of a plan: what one task of an array job does, knowing nothing of the others."""

from __future__ import annotations

import re
from dataclasses import dataclass

from shardkit.errors import ConfigError

__all__ = ["WHOLE", "Part"]


@dataclass(frozen=True, slots=True)
class Part:
    """Part ``index`` of ``count``, counted from 0: every ``count``-th item, so that parts are even.

    Each item belongs to exactly one part, and which one depends on nothing but the two numbers.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        """Check both numbers.

        Raises:
            ConfigError: there is no such part.
        """
        if self.count < 1:
            raise ConfigError(f"part {self}: there must be at least 1 part")
        if not 0 <= self.index < self.count:
            raise ConfigError(
                f"there is no part {self}: parts are counted from 0, so they are 0/{self.count} to "
                f"{self.count - 1}/{self.count}; let the array count from 0 too (Slurm: "
                f"--array=0-{self.count - 1})"
            )

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def is_whole(self) -> bool:
        """Whether there are no other parts."""
        return self.count == 1

    @classmethod
    def parse(cls, text: str) -> Part:
        """The part that ``"3/8"`` names.

        Raises:
            ConfigError: the text is no part.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if found is None:
            raise ConfigError(f"part {text!r} is not of the form i/n, such as 0/8")
        return cls(int(found[1]), int(found[2]))

    def items(self, num_items: int) -> range:
        """The items of this part among ``num_items``."""
        return range(self.index, num_items, self.count)


WHOLE = Part(0, 1)
"""All there is."""
