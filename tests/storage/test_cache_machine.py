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

from shardkit.storage.cache import Cache, CachedObject
from shardkit.storage.entries import Entry
from tests.storage.disk import BLOCK, damage, disk_bytes

LIMIT = 11 * BLOCK
KEYS = st.integers(0, 7)
WHO = st.integers(0, 1)


def content(key: int) -> bytes:
    """Sizes 0, 1, ... blocks, so that about a third of all objects fits."""
    return bytes([key + 1]) * (key * BLOCK)


class CacheMachine(RuleBasedStateMachine):
    @initialize(policy=st.sampled_from(["lru", "next-use"]))
    def open_folder(self, policy: str) -> None:
        self.folder = tempfile.mkdtemp(prefix="machine-")
        self.caches = [Cache(self.folder, LIMIT, policy=policy) for _ in range(2)]  # type: ignore[arg-type]
        self.held: list[tuple[int, Entry]] = []
        self.damaged: dict[int, tuple[str, int]] = {}  # where the damaged bytes of a key lie

    @rule(who=WHO, key=KEYS, as_file=st.booleans())
    def get(self, who: int, key: int, as_file: bool) -> None:
        found = self.caches[who].get(str(key), lambda: content(key), as_file=as_file)
        assert found == content(key)
        self.damaged.pop(key, None)

    @rule(who=WHO, key=KEYS, as_file=st.booleans(), changed=st.booleans())
    def get_fresh(self, who: int, key: int, as_file: bool, changed: bool) -> None:
        if key in {held for held, entry in self.held if entry.is_cached}:
            return  # one that was opened with no version told is of another: it loses its path
        found = self.caches[who].get_fresh(
            str(key),
            lambda: (content(key), "one"),
            lambda: "other" if changed else "one",
            since_ns=1 << 62,  # no copy is as new as that: ask
            as_file=as_file,
        )
        assert found == content(key)
        self.damaged.pop(key, None)

    @rule(who=WHO, key=KEYS, due=st.none() | st.floats(0, 100), known=st.booleans())
    def open(self, who: int, key: int, due: float | None, known: bool) -> None:
        size = len(content(key)) if known else -1
        entry = self.caches[who].open(
            str(key), lambda sink: sink.write(content(key)), size=size, due=due
        )
        self.damaged.pop(key, None)  # dropped, even where the new one found no room
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
            assert Path(entry.path).read_bytes() == content(key)
            entry.close()

    @rule(who=WHO, key=KEYS)
    def read(self, who: int, key: int) -> None:
        assert self.caches[who].read(str(key)) in (None, content(key))

    @rule(who=WHO, key=KEYS)
    def fail(self, who: int, key: int) -> None:
        def load() -> bytes:
            raise ConnectionError(str(key))

        try:
            found = self.caches[who].get(str(key), load)
        except ConnectionError:
            self.damaged.pop(key, None)  # the damaged one was dropped before the attempt
        else:
            assert found == content(key)

    @rule(who=WHO)
    def clear(self, who: int) -> None:
        self.caches[who].clear()

    @rule(who=WHO)
    def close_and_go_on(self, who: int) -> None:
        self.caches[who].close()

    @rule(key=KEYS, how=st.sampled_from(["flip", "cut"]))
    def damage(self, key: int, how: str) -> None:
        held = {key for key, entry in self.held if entry.is_cached}
        entry = self._entries().get(key)
        if entry is None or key in held or not entry.size:
            return
        if how == "cut" and "/segments/" in entry.path:
            how = "flip"  # all that lies behind it would go, too
        damage(entry.path, entry.start, entry.size, how)
        was = self.damaged.get(key)
        if was == (entry.path, entry.start) and how == "flip" and "/segments/" in entry.path:
            del self.damaged[key]  # flipped back
        else:
            self.damaged[key] = entry.path, entry.start

    @invariant()
    def what_is_held_stays_readable(self) -> None:
        for key, entry in getattr(self, "held", []):
            assert bytes(entry.data) == content(key)
            assert Path(entry.path).read_bytes() == content(key)

    @invariant()
    def the_limit_holds(self) -> None:
        if hasattr(self, "folder"):
            assert disk_bytes(self.folder) <= LIMIT

    @invariant()
    def ledger_and_disk_agree(self) -> None:
        if hasattr(self, "caches"):
            entries = self._entries()
            self.damaged = {
                key: (path, start)
                for key, (path, start) in self.damaged.items()
                if key in entries and (entries[key].path, entries[key].start) == (path, start)
            }
            found = self.caches[0].check()
            assert len(found) == len(self.damaged), (found, self.damaged)

    @invariant()
    def what_is_recorded_is_what_lies_there(self) -> None:
        if hasattr(self, "caches"):
            recorded = sum(entry.size for entry in self._entries().values())
            assert disk_bytes(self.folder) >= recorded - sum(
                len(content(key)) for key in self.damaged
            )

    def teardown(self) -> None:
        if hasattr(self, "caches"):
            for _, entry in self.held:
                entry.close()
            for cache in self.caches:
                cache.close()
            shutil.rmtree(self.folder)

    def _entries(self) -> dict[int, CachedObject]:
        self.caches[1].flush()
        return {int(entry.key): entry for entry in self.caches[0].entries()}


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=8, stateful_step_count=25, deadline=None)
