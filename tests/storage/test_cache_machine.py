"""The cache against a plain dict: any sequence of calls, by two instances of one folder."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from shardkit.storage.cache import Cache
from shardkit.storage.entries import Entry, entry_name

LIMIT = 10_000
KEYS = st.integers(0, 7)
WHO = st.integers(0, 1)


def content(key: int) -> bytes:
    """Sizes 0, 900, … so that about a third of all objects fits."""
    return bytes([key + 1]) * (key * 900)


class CacheMachine(RuleBasedStateMachine):
    @initialize(policy=st.sampled_from(["lru", "next-use"]))
    def open_folder(self, policy: str) -> None:
        self.folder = tempfile.mkdtemp(prefix="machine-")
        self.caches = [Cache(self.folder, LIMIT, policy=policy) for _ in range(2)]  # type: ignore[arg-type]
        self.held: list[tuple[int, Entry]] = []
        self.damaged: set[int] = set()

    @rule(who=WHO, key=KEYS)
    def get(self, who: int, key: int) -> None:
        assert self.caches[who].get(str(key), lambda: content(key)) == content(key)
        self.damaged.discard(key)

    @rule(who=WHO, key=KEYS, due=st.none() | st.floats(0, 100), known=st.booleans())
    def open(self, who: int, key: int, due: float | None, known: bool) -> None:
        size = len(content(key)) if known else -1
        entry = self.caches[who].open(
            str(key), lambda sink: sink.write(content(key)), size=size, due=due
        )
        if entry.is_cached:
            self.damaged.discard(key)
        self.held.append((key, entry))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def close_one(self, data: st.DataObject) -> None:
        _, entry = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        entry.close()

    @rule(who=WHO, key=KEYS)
    def find(self, who: int, key: int) -> None:
        entry = self.caches[who].find(str(key))
        if entry is not None:
            assert bytes(entry.data) == content(key)
            entry.close()

    @rule(who=WHO, key=KEYS)
    def fail(self, who: int, key: int) -> None:
        def load() -> bytes:
            raise ConnectionError(str(key))

        try:
            found = self.caches[who].get(str(key), load)
        except ConnectionError:
            self.damaged.discard(key)  # the damaged one was dropped before the attempt
        else:
            assert found == content(key)

    @rule(who=WHO)
    def clear(self, who: int) -> None:
        self.caches[who].clear()
        self.damaged -= {key for key in self.damaged if not self._file(key).exists()}

    @rule(who=WHO)
    def close_and_go_on(self, who: int) -> None:
        self.caches[who].close()

    @rule(key=KEYS)
    def damage(self, key: int) -> None:
        held = {key for key, entry in self.held if entry.is_cached}
        if self._file(key).exists() and key not in held and key:
            with self._file(key).open("r+b") as file:
                file.write(b"\xff")
            self.damaged.add(key)

    @invariant()
    def what_is_held_stays_readable(self) -> None:
        for key, entry in getattr(self, "held", []):
            assert bytes(entry.data) == content(key)
            assert Path(entry.path).read_bytes() == content(key)

    @invariant()
    def the_limit_holds(self) -> None:
        if hasattr(self, "folder"):
            files = [p for p in Path(self.folder).rglob("*") if p.is_file()]
            ours = [p for p in files if len(p.name) == 32 or p.parent.parent.name == "asides"]
            assert sum(p.stat().st_size for p in ours) <= LIMIT

    @invariant()
    def ledger_and_disk_agree(self) -> None:
        if hasattr(self, "caches"):
            found = self.caches[0].check()
            present = {key for key in self.damaged if self._file(key).exists()}
            assert len(found) == len(present), (found, self.damaged)

    def teardown(self) -> None:
        if hasattr(self, "caches"):
            for _, entry in self.held:
                entry.close()
            for cache in self.caches:
                cache.close()
            shutil.rmtree(self.folder)

    def _file(self, key: int) -> Path:
        name = entry_name(str(key))
        return Path(self.folder) / "shardkit-cache-1" / "entries" / name[:2] / name


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=8, stateful_step_count=25, deadline=None)
