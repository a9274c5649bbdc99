"""Compare a cache's ledger and disk both ways, and make them agree."""

from __future__ import annotations

import contextlib
import os

from shardkit.storage.asides import aside_files, remove_asides
from shardkit.storage.entries import is_sound
from shardkit.storage.folder import Folder
from shardkit.storage.leases import journal_of
from shardkit.storage.ledger import Ledger, Row

__all__ = ["differences"]


def differences(folder: Folder, ledger: Ledger, limit: int | None, *, mend: bool) -> list[str]:
    """Within a transaction: compare both ways; ``mend`` makes the disk and the rows agree."""
    # The disk is listed before the journals are read: what appears meanwhile is noted first.
    on_disk = set(folder.entry_names())
    leases = set(os.listdir(folder.leases))
    noted: set[str] = set()
    for lease in leases:
        noted.update(journal_of(os.path.join(folder.leases, lease)))
    rows = {row.name: row for row in ledger.rows()}
    found, wrong = _wrong_rows(folder, rows, noted)
    for name in on_disk - rows.keys() - noted:
        found.append(f"entry {name} is on the disk but not recorded")
        wrong.add(name)
    found += _wrong_reservations(folder, ledger, leases)
    kept = ledger.counted()
    if kept != (sum(row.size for row in rows.values()), len(rows)):
        found.append(f"totals say {kept[1]} entries, {kept[0]} bytes; the rows say otherwise")
    if limit is not None and ledger.total_bytes() > limit:
        found.append(f"{ledger.total_bytes()} bytes are over the limit {limit}")
    if mend:
        for name in wrong:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(folder.entry(name))
        ledger.remove(wrong)
        remove_asides(folder.asides, {lease for lease, _ in aside_files(folder.asides)} - leases)
    return found


def _wrong_rows(
    folder: Folder, rows: dict[str, Row], noted: set[str]
) -> tuple[list[str], set[str]]:
    found, wrong = [], set()
    for row in rows.values():
        try:
            status = os.stat(folder.entry(row.name))
        except FileNotFoundError:
            if row.name not in noted:
                found.append(f"entry {row.name} ({row.key}) is recorded but not on the disk")
                wrong.add(row.name)
            continue
        if status.st_size != row.size or not is_sound(status):
            found.append(f"entry {row.name} ({row.key}) was changed since it was published")
            wrong.add(row.name)
    return found, wrong


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
