"""Compare a cache's ledger and disk both ways, and make them agree."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from shardkit.storage.asides import aside_files, remove_asides
from shardkit.storage.entries import is_sound
from shardkit.storage.folder import Folder
from shardkit.storage.leases import journal_of
from shardkit.storage.ledger import Ledger, Row
from shardkit.storage.places import Place
from shardkit.storage.segments import Segments

__all__ = ["Holdings", "differences", "is_changed", "let_go"]


class Holdings(NamedTuple):
    """All that a cache holds, and what it knows of it."""

    folder: Folder
    ledger: Ledger
    segments: Segments


def differences(held: Holdings, limit: int | None, *, mend: bool) -> list[str]:
    """Within a transaction: compare both ways; ``mend`` makes the disk and the rows agree.

    No bytes are read: see ``is_changed``.
    """
    folder, ledger, segments = held
    on_disk = set(folder.entry_names())
    files = set(segments.files())
    rows = {row.name: row for row in ledger.rows()}
    wrong = {name: told for row in rows.values() for name, told in _wrong(held, row)}
    for name in on_disk - {row.name for row in rows.values() if row.place is None}:
        wrong[name] = f"entry {name} is on the disk but not recorded"
    # Journals are read last: whatever appeared or went meanwhile was noted first.
    leases = set(os.listdir(folder.leases))
    for lease in leases:
        for name in journal_of(os.path.join(folder.leases, lease)):
            wrong.pop(name, None)
    found = list(wrong.values())
    empty = [f for f in files if f.partition("-")[0] not in leases and ledger.is_empty(f)]
    found += [f"segment {file} belongs to nobody" for file in empty]
    found += _wrong_reservations(folder, ledger, leases)
    kept = ledger.counted()
    if kept != (sum(row.size for row in rows.values()), len(rows)):
        found.append(f"totals say {kept[1]} entries, {kept[0]} bytes; the rows say otherwise")
    num_bytes = kept[0] + sum(ledger.leases().values())
    if limit is not None and num_bytes > limit:
        found.append(f"{num_bytes} bytes are over the limit {limit}")
    if mend:
        _mend(held, set(wrong), empty, leases)
    return found


def is_changed(held: Holdings, row: Row) -> bool:
    """Within a transaction: is what a packed entry was recorded with not what lies there?

    Not of one whose file is gone: that is one of the ``differences``.
    """
    now, found = held.ledger.row(row.name), held.segments.places.find(row.name)
    if now is None or now.place is None or found is None or row.place is None:
        return False  # it went meanwhile
    is_there = found.is_same(row.place) and now.place.is_same(row.place)
    is_there = is_there and os.path.exists(held.folder.segment(row.place.file))
    return is_there and not held.segments.is_sound(row.name, row.place)


def let_go(held: Holdings, places: Sequence[Place], files: Iterable[str] = ()) -> None:
    """Within a transaction: free places that no row has now; empty segments go as a whole."""
    _, ledger, segments = held
    gone = {
        file
        for file in {place.file for place in places}.union(files)
        if ledger.is_empty(file) and segments.remove(file)
    }
    segments.free(place for place in places if place.file not in gone)


def _wrong(held: Holdings, row: Row) -> list[tuple[str, str]]:
    """What is wrong with a row's entry, by its name."""
    shown = f"entry {row.name} ({row.key})"
    if row.place is not None:
        found = held.segments.places.find(row.name)
        if found is None or not found.is_same(row.place):
            return [(row.name, f"{shown} is recorded but cannot be found")]
        if not os.path.exists(held.folder.segment(row.place.file)):
            return [(row.name, f"{shown} is recorded but not on the disk")]
        return []
    try:
        status = os.stat(held.folder.entry(row.name))
    except FileNotFoundError:
        return [(row.name, f"{shown} is recorded but not on the disk")]
    if status.st_size != row.size or not is_sound(status):
        return [(row.name, f"{shown} was changed since it was published")]
    return []


def _mend(held: Holdings, wrong: set[str], empty: list[str], leases: set[str]) -> None:
    folder, ledger, segments = held
    for name in wrong:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(folder.entry(name))
    segments.places.remove(wrong)
    let_go(held, ledger.remove(wrong), empty)
    remove_asides(folder.asides, {lease for lease, _ in aside_files(folder.asides)} - leases)


def _wrong_reservations(folder: Folder, ledger: Ledger, leases: set[str]) -> list[str]:
    found = [
        f"temporary {os.path.basename(path)} belongs to nobody"
        for lease, path in aside_files(folder.asides)
        if lease not in leases
    ]
    for name, num_bytes in ledger.leases().items():
        if name not in leases:
            found.append(f"{num_bytes} bytes are reserved by {name}, which is gone")
        elif num_bytes < 0:
            found.append(f"the lease {name} holds {num_bytes} bytes")
    return found
