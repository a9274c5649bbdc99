"""What is done to a cache after a process has died, a new boot, the loss of a file."""

from __future__ import annotations

import contextlib
import logging
import os

from shardkit.storage.asides import remove_asides
from shardkit.storage.audit import Holdings, differences, let_go
from shardkit.storage.entries import entry_name
from shardkit.storage.leases import dead_leases
from shardkit.storage.ledger import Row

__all__ = ["check_boot", "drop", "find_again", "name_anew", "reap"]

logger = logging.getLogger(__name__)

_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_NAMES = "with ext"
_SETTLED_S = 120.0
"""Entries older than this at the end of a boot were on the disk: Linux writes dirty pages back
within 35 s. Younger ones may be holes after a power cut."""


def reap(held: Holdings) -> None:
    """Within a transaction: clean up after processes that died."""
    folder, ledger, _ = held
    for name, journal in dead_leases(folder.leases):
        logger.info("cleaning up after a process that died (lease %s)", name)
        for noted in set(journal):
            _settle(held, noted)
        _clean(held, name)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(folder.leases, name))
    alive = set(os.listdir(folder.leases))
    for name in ledger.leases():
        if name not in alive:
            _clean(held, name)


def find_again(held: Holdings) -> None:
    """Within a transaction: fill a new table of places from the rows."""
    rows = ((row.name, row.place, row.created) for row in held.ledger.rows())
    held.segments.places.put(
        (name, place._replace(asked_ns=int(created * 1e9)))
        for name, place, created in rows
        if place is not None
    )


def name_anew(held: Holdings) -> None:
    """Within a transaction: give entries that were named without an ext their present names."""
    folder, ledger, _ = held
    if ledger.fact("names") == _NAMES:
        return
    for row in ledger.rows():
        name = entry_name(row.key)
        if name != row.name:
            if row.place is None:  # it may have its new name from one who was killed meanwhile
                with contextlib.suppress(FileNotFoundError):
                    os.rename(folder.entry(row.name), folder.entry(name))
            ledger.rename(row.name, name)
    ledger.note_fact("names", _NAMES)


def check_boot(held: Holdings, limit: int | None) -> None:
    """Within a transaction: on a machine that was started anew, trust only what had settled."""
    try:
        with open(_BOOT_ID, encoding="ascii") as file:
            boot = file.read().strip()
    except OSError:
        return
    if held.ledger.fact("boot") == boot:
        return
    rows = list(held.ledger.rows())
    last = max((max(r.created, r.last_used) for r in rows), default=0.0)
    for row in rows:
        if row.created > last - _SETTLED_S:
            drop(held, row)
    differences(held, limit, mend=True)
    held.ledger.note_fact("boot", boot)


def _settle(held: Holdings, name: str) -> None:
    """Finish what a dead process had begun with an entry."""
    folder, ledger, segments = held
    row = ledger.row(name)
    on_disk = os.path.exists(folder.entry(name))
    if row is not None and row.place is not None:
        found = segments.places.find(name)
        if found is None or not found.is_same(row.place):
            drop(held, row)
            row = None
    elif row is not None and not on_disk:
        ledger.remove([name])
    if on_disk and (row is None or row.place is not None):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(folder.entry(name))


def drop(held: Holdings, row: Row) -> None:
    """Within a transaction: delete an entry."""
    held.segments.places.remove([row.name])
    with contextlib.suppress(FileNotFoundError):
        os.unlink(held.folder.entry(row.name))
    let_go(held, held.ledger.remove([row.name]))


def _clean(held: Holdings, lease: str) -> None:
    """Give back the room of a lease whose process is dead, and what it had not recorded."""
    folder, ledger, segments = held
    remove_asides(folder.asides, {lease})
    ends: dict[int, int] = {}
    for file in segments.files(lease):
        if not (ledger.is_empty(file) and segments.remove(file)):
            end = ledger.end_of(file)
            ends[int(file.partition("-")[2])] = end
            segments.cut(file, end)
    lost = segments.places.behind(int(lease, 16), ends)
    segments.places.remove(name for name, place in lost if not ledger.has(place))
    ledger.drop_lease(lease)
