"""The ledger: what the cache holds, who has reserved how much. One SQLite file in WAL mode.

Every write is one short transaction through ``transaction``. Totals are kept by triggers, so that
no question costs more with more entries. Readers of entries never come here: a hit is a file.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import json
import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from shardkit.errors import CacheError
from shardkit.storage.places import Place

__all__ = ["Ledger", "Row", "room_of"]

logger = logging.getLogger(__name__)

_BUSY_S = 60.0
"""How long a transaction waits for another's; those take milliseconds, deleting big files more."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    name TEXT PRIMARY KEY, key TEXT NOT NULL, size INTEGER NOT NULL,
    created REAL NOT NULL, last_used REAL NOT NULL, due REAL, due_by TEXT,
    segment TEXT, start INTEGER, digest INTEGER, mark INTEGER
);
CREATE INDEX IF NOT EXISTS by_use ON entries (last_used);
CREATE INDEX IF NOT EXISTS unplanned ON entries (last_used) WHERE due IS NULL;
CREATE INDEX IF NOT EXISTS by_due ON entries (due) WHERE due IS NOT NULL;
CREATE INDEX IF NOT EXISTS by_planner ON entries (due_by) WHERE due_by IS NOT NULL;
CREATE INDEX IF NOT EXISTS by_segment ON entries (segment) WHERE segment IS NOT NULL;
CREATE TABLE IF NOT EXISTS leases (name TEXT PRIMARY KEY, bytes INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS verified (path TEXT PRIMARY KEY, identity TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS totals (one INTEGER PRIMARY KEY, bytes INTEGER, entries INTEGER);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT);
INSERT OR IGNORE INTO totals VALUES (1, 0, 0);
CREATE TRIGGER IF NOT EXISTS added AFTER INSERT ON entries BEGIN
    UPDATE totals SET bytes = bytes + new.size, entries = entries + 1; END;
CREATE TRIGGER IF NOT EXISTS removed AFTER DELETE ON entries BEGIN
    UPDATE totals SET bytes = bytes - old.size, entries = entries - 1; END;
CREATE TRIGGER IF NOT EXISTS resized AFTER UPDATE OF size ON entries BEGIN
    UPDATE totals SET bytes = bytes + new.size - old.size; END;
"""

_COLUMNS = (
    *("name", "key", "size", "created", "last_used", "due", "due_by"),
    *("segment", "start", "digest", "mark"),
)
_UPDATE = f"UPDATE entries SET {', '.join(f'{c}=?' for c in _COLUMNS[2:])} WHERE name=?"  # noqa: S608
_ROWS = 50

_MORE = 4 << 10
"""Bytes that an entry takes besides its own: the rest of its last block, a row here, a slot in the
table of places."""

_SPARED = 4 << 20
"""Of those, so many are not counted against the limit, so that a limit of a few small objects holds
as many as it says: 10 of 1,000 bytes in 10,000, though they take ten blocks."""

_SIGN = 1 << 63


class Row(NamedTuple):
    """An entry as the ledger knows it; times are seconds since 1970."""

    name: str
    key: str
    size: int
    created: float
    last_used: float
    due: float | None = None
    due_by: str | None = None
    place: Place | None = None


class Ledger:
    """A connection of this process. Not thread-safe: its cache calls it under one lock."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None

    @property
    def _db(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = _connect(self._path)
        return self._connection

    def close(self) -> None:
        """Close the connection; the next use opens it again.

        Must happen before every fork: SQLite keeps in memory which locks its process holds, so a
        child that inherits an open connection would believe that it holds the parent's.
        """
        if self._connection is not None:
            with self._mapped_errors():
                self._connection.close()
            self._connection = None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Write alone; all of the block or nothing of it becomes visible."""
        with self._mapped_errors():
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._connection is not None and self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def short_wait(self, wait_s: float) -> Iterator[None]:
        """Wait for others' transactions only so long within the block."""
        with self._mapped_errors():
            self._db.execute(f"PRAGMA busy_timeout={int(wait_s * 1000)}")
        try:
            yield
        finally:
            self._db.execute(f"PRAGMA busy_timeout={int(_BUSY_S * 1000)}")

    def total_bytes(self) -> int:
        """Return the room of all entries and leases: what the limit bounds."""
        leases = self._number("SELECT COALESCE(SUM(bytes), 0) FROM leases")
        return room_of(*self.counted()) + leases

    def counted(self) -> tuple[int, int]:
        """Return the kept totals: bytes of entries, their number."""
        row = self._db.execute("SELECT bytes, entries FROM totals").fetchone()
        return int(row[0]), int(row[1])

    def add(self, rows: Sequence[Row]) -> list[Place]:
        """Record entries; one that is there is replaced. Return the places that none has now.

        Many in one statement: after each, Python's threads take turns.
        """
        left: list[Place] = []
        for start in range(0, len(rows), _ROWS):
            some = rows[start : start + _ROWS]
            values = [value for row in some for value in _values(row)]
            added = self._db.execute(_insert(len(some)), values).rowcount
            if added < len(some):
                left += self._replace(some)
        return left

    def _replace(self, rows: Sequence[Row]) -> list[Place]:
        had = self._places_of(row.name for row in rows)
        self._db.executemany(_UPDATE, [(*_values(row)[2:], row.name) for row in rows])
        last = {row.name: row.place for row in rows}
        had += [row.place for row in rows if row.place is not None]
        taken = {(place.file, place.start) for place in last.values() if place is not None}
        return [place for place in had if (place.file, place.start) not in taken]

    def touch(self, uses: Iterable[tuple[str, float, float | None]], planner: str) -> None:
        """Record uses ``(name, time, due)``: when an entry was used, when it will be again.

        ``due=None`` takes back this planner's own plan, never somebody else's.
        """
        self._db.executemany(
            "UPDATE entries SET last_used = :used, "
            "due = CASE WHEN :due IS NULL AND due_by IS NOT :planner THEN due ELSE :due END, "
            "due_by = CASE WHEN :due IS NOT NULL THEN :planner "
            "WHEN due_by IS :planner THEN NULL ELSE due_by END WHERE name = :name",
            (
                {"name": name, "used": used, "due": due, "planner": planner}
                for name, used, due in uses
            ),
        )

    def forget_plans(self, planner: str) -> None:
        """Drop what an ended consumer said about its next uses."""
        self._db.execute("UPDATE entries SET due=NULL, due_by=NULL WHERE due_by=?", (planner,))

    def remove(self, names: Iterable[str]) -> list[Place]:
        """Delete rows; return the places that they had."""
        names = list(names)
        places = self._places_of(names)
        self._db.execute(
            "DELETE FROM entries WHERE name IN (SELECT value FROM json_each(?))",
            (json.dumps(names),),
        )
        return places

    def end_of(self, segment: str) -> int:
        """Return the byte of a segment's file behind its last entry; 0 if it has none."""
        return self._number(
            "SELECT COALESCE(MAX(start + size), 0) FROM entries WHERE segment=?", segment
        )

    def is_empty(self, segment: str) -> bool:
        """Has a segment no entries?"""
        found = self._db.execute("SELECT 1 FROM entries WHERE segment=? LIMIT 1", (segment,))
        return found.fetchone() is None

    def has(self, place: Place) -> bool:
        """Does an entry lie there?"""
        found = self._db.execute(
            "SELECT segment, start, size, digest, mark FROM entries WHERE segment=? AND start=?",
            (place.file, place.start),
        )
        return any((there := _place(*row)) and there.is_same(place) for row in found.fetchall())

    def rename(self, old: str, new: str) -> None:
        """Give an entry another name."""
        self._db.execute("UPDATE entries SET name=? WHERE name=?", (new, old))

    def row(self, name: str) -> Row | None:
        """Return the row of this name."""
        found = self._db.execute("SELECT * FROM entries WHERE name=?", (name,)).fetchone()
        return None if found is None else _row(found)

    def coldest(self, query: str) -> Iterator[tuple[str, int, bool]]:
        """Yield ``(name, size, is packed)`` of a policy's query, few at a time."""
        found = self._db.execute(query)
        while rows := found.fetchmany(64):
            yield from rows

    def rows(self) -> Iterator[Row]:
        """Yield all entries by name."""
        last = ""
        while found := self._db.execute(
            "SELECT * FROM entries WHERE name > ? ORDER BY name LIMIT 1000", (last,)
        ).fetchall():
            for values in found:
                yield _row(values)
            last = found[-1][0]

    def leases(self) -> dict[str, int]:
        """Return bytes by lease."""
        return dict(self._db.execute("SELECT name, bytes FROM leases").fetchall())

    def grow_lease(self, name: str, num_bytes: int) -> None:
        """Add (or, negative, give back) bytes of a lease."""
        self._db.execute(
            "INSERT INTO leases VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET "
            "bytes = bytes + excluded.bytes",
            (name, num_bytes),
        )

    def set_lease(self, name: str, num_bytes: int) -> None:
        """Note how many bytes a lease has."""
        self._db.execute("INSERT OR REPLACE INTO leases VALUES (?, ?)", (name, num_bytes))

    def drop_lease(self, name: str) -> None:
        """Forget a lease and the plans of its process."""
        self._db.execute("DELETE FROM leases WHERE name=?", (name,))
        self.forget_plans(name)

    def verified(self, path: str) -> str | None:
        """Return the identity under which a local file was verified on this node."""
        with self._mapped_errors():
            row = self._db.execute("SELECT identity FROM verified WHERE path=?", (path,)).fetchone()
        return None if row is None else str(row[0])

    def note_verified(self, path: str, identity: str) -> None:
        """Record that a local file was verified."""
        self._db.execute("INSERT OR REPLACE INTO verified VALUES (?, ?)", (path, identity))

    def fact(self, name: str) -> str | None:
        """Return a remembered fact."""
        row = self._db.execute("SELECT value FROM facts WHERE name=?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def note_fact(self, name: str, value: str) -> None:
        """Remember a fact."""
        self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def _number(self, query: str, *values: str) -> int:
        return int(self._db.execute(query, values).fetchone()[0])

    def _places_of(self, names: Iterable[str]) -> list[Place]:
        found = self._db.execute(
            "SELECT segment, start, size, digest, mark FROM entries WHERE segment IS NOT NULL "
            "AND name IN (SELECT value FROM json_each(?))",
            (json.dumps(list(names)),),
        )
        return [place for row in found if (place := _place(*row)) is not None]

    @contextmanager
    def _mapped_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            full = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL
            folder = os.path.dirname(self._path)
            if full:
                mapped = CacheError(f"the disk of the cache {folder} is full; make room there")
                mapped.errno = errno.ENOSPC
            else:
                mapped = CacheError(
                    f"the ledger of the cache {folder} failed: {error}; if it is damaged, remove "
                    f"{self._path}* and the entries beside it: it is only a cache"
                )
            raise mapped from error


def room_of(num_bytes: int, num_entries: int) -> int:
    """Return what entries count against the limit: their bytes, and what many take besides."""
    return num_bytes + max(0, num_entries * _MORE - _SPARED)


@functools.cache
def _insert(num_rows: int) -> str:
    row = f"({', '.join('?' * len(_COLUMNS))})"
    return f"INSERT OR IGNORE INTO entries VALUES {', '.join([row] * num_rows)}"  # noqa: S608


def _values(row: Row) -> tuple[str | float | None, ...]:
    """A row's columns; digests, which have no sign, as SQLite's integers, which have one."""
    place = row.place
    if place is None:
        return (*row[:7], None, None, None, None)
    return (*row[:7], place.file, place.start, place.digest - _SIGN, place.mark)


def _row(values: Sequence[Any]) -> Row:
    segment, start, digest, mark = values[7:]
    name, key, size, created, last_used, due, due_by = values[:7]
    place = _place(segment, start, size, digest, mark)
    return Row(name, key, size, created, last_used, due, due_by, place)


def _place(segment: str | None, start: int, size: int, digest: int, mark: int) -> Place | None:
    if segment is None:
        return None
    lease, _, number = segment.partition("-")
    return Place(int(lease, 16), int(number), start, size, digest + _SIGN, mark, 0)


def _connect(path: str) -> sqlite3.Connection:
    """Open the ledger, one process at a time: SQLite makes nobody wait for a change to WAL."""
    alone = os.open(os.path.dirname(path), os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(alone, fcntl.LOCK_EX)
        return _connect_alone(path)
    finally:
        os.close(alone)


def _connect_alone(path: str) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA journal_mode=WAL")
    # entries are files: after a power cut the boot check compares both anyway
    db.execute("PRAGMA synchronous=NORMAL")
    if db.execute("PRAGMA user_version").fetchone()[0] == 0:
        db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version=1; COMMIT;")
    return db
