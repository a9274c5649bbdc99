"""The tar dialect: USTAR headers that carry the checksum of their member's data.

Layout after POSIX.1-1988 (ustar). Fields that say nothing about the data are constant, so that
equal samples make equal bytes. The group-name field, which every reader ignores, holds ``xxh3:``
and the 16 hex digits of the XXH3-64 of the member's data.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple
from zlib import adler32

from xxhash import xxh3_64_intdigest

from shardkit.errors import ConfigError, CorruptError

__all__ = [
    "BLOCK",
    "END_OF_TAR",
    "MAX_MEMBER_BYTES",
    "TarMember",
    "checksum",
    "member_header",
    "padded",
    "padding",
    "read_header",
    "walk_members",
]

BLOCK = 512
END_OF_TAR = bytes(2 * BLOCK)
MAX_MEMBER_BYTES = 8 << 30  # eleven octal digits: sizes must stay below
MAX_NAME_BYTES = 100

_MTIME = 946_684_800  # 2000-01-01T00:00:00Z; zero makes some tars warn
_MARK = b"xxh3:"
# Everything between the name and the end of the header, with the three things that vary left out.
_MODE_TO_GID = b"0000644\x000000000\x000000000\x00"
_MTIME_FIELD = b"%011o\x00" % _MTIME
_TYPE_TO_UNAME = b"0" + bytes(100) + b"ustar\x0000" + bytes(32) + _MARK
_AFTER_MARK = bytes(32 - len(_MARK) - 16) + b"0000000\x000000000\x00" + bytes(155 + 12)
_CONSTANT_SUM = (
    sum(_MODE_TO_GID) + sum(_MTIME_FIELD) + sum(_TYPE_TO_UNAME) + sum(_AFTER_MARK) + 8 * ord(" ")
)

checksum = xxh3_64_intdigest
"""XXH3-64 of bytes, as an int: the checksum of member data, tars, indexes and sidecars."""


class TarMember(NamedTuple):
    """One member as its header describes it; offsets are absolute in the buffer walked."""

    name: str
    header: int
    start: int
    size: int
    checksum: int | None
    """XXH3-64 of the data, None where the header carries none (a foreign tar)."""


def padding(size: int) -> bytes:
    """The zeros that fill ``size`` bytes of data up to a whole block."""
    return bytes(-size % BLOCK)


def padded(size: int) -> int:
    """Bytes that data of ``size`` bytes take in a tar, without their header."""
    return size + -size % BLOCK


def member_header(name: bytes, size: int, data_checksum: int) -> bytes:
    """The 512-byte header of a regular file.

    Args:
        name: member name, ASCII, at most 100 bytes (a full field has no terminator).
        size: bytes of data, below 8 GiB.
        data_checksum: XXH3-64 of the data.

    Raises:
        ConfigError: the name is too long or the data too large for the dialect.
    """
    if len(name) > MAX_NAME_BYTES:
        raise ConfigError(
            f"the member name {name!r} has {len(name)} bytes; a shard holds names of at most "
            f"{MAX_NAME_BYTES}: shorten the key or the ext"
        )
    if size >= MAX_MEMBER_BYTES:
        raise ConfigError(
            f"the member {name!r} has {size:,} bytes; a shard holds members below "
            f"{MAX_MEMBER_BYTES:,} (8 GiB): split the file, or leave it out of the index"
        )
    size_field = b"%011o\x00" % size
    hexdigits = b"%016x" % data_checksum
    # The low half of Adler-32 (RFC 1950) is 1 + the sum of bytes, while that is below 65,521.
    total = _CONSTANT_SUM + (adler32(name + size_field + hexdigits) & 0xFFFF) - 1
    return b"%b%b%b%b%06o\x00 %b%b%b" % (
        name.ljust(MAX_NAME_BYTES, b"\x00"),
        _MODE_TO_GID,
        size_field,
        _MTIME_FIELD,
        total,
        _TYPE_TO_UNAME,
        hexdigits,
        _AFTER_MARK,
    )


def read_header(buffer: bytes | memoryview, offset: int = 0) -> TarMember | None:
    """The member whose header starts at ``offset``; None at the end-of-tar block.

    Takes our dialect: regular files with short names. Foreign tars (long names, links, PAX) are
    the business of the index room's scanner.

    Raises:
        CorruptError: no valid header stands there.
    """
    head = bytes(buffer[offset : offset + BLOCK])
    if len(head) < BLOCK:
        raise CorruptError(
            f"the tar is cut: {len(head)} of 512 header bytes at offset {offset:,}; fetch or "
            "repair the shard"
        )
    if not head.strip(b"\x00"):
        return None
    try:
        size = int(head[124:136].rstrip(b"\x00 "), 8)
        stored = int(head[148:156].rstrip(b"\x00 "), 8)
        name = head[:MAX_NAME_BYTES].rstrip(b"\x00").decode("utf-8")
    except ValueError as error:
        raise CorruptError(
            f"no tar header at offset {offset:,} ({error}); verify the shard"
        ) from error
    if stored != sum(head) - sum(head[148:156]) + 8 * ord(" "):
        raise CorruptError(f"the tar header at offset {offset:,} fails its own checksum")
    if head[156:157] not in (b"0", b"\x00"):
        raise CorruptError(
            f"the tar header at offset {offset:,} is of type {head[156:157]!r}, not a regular file"
        )
    return TarMember(name, offset, offset + BLOCK, size, _header_checksum(head))


def walk_members(
    buffer: bytes | memoryview, start: int = 0, stop: int | None = None
) -> Iterator[TarMember]:
    """The members whose headers lie in ``buffer[start:stop]``, in order, up to the end-of-tar.

    Raises:
        CorruptError: a header is broken, or data reaches past ``stop``.
    """
    end = len(buffer) if stop is None else stop
    offset = start
    while offset < end:
        member = read_header(buffer, offset)
        if member is None:
            return
        offset = member.start + padded(member.size)
        if offset > end:
            raise CorruptError(
                f"the member {member.name!r} at offset {member.header:,} ends at {offset:,}, past "
                f"{end:,}: the tar is cut"
            )
        yield member


def _header_checksum(head: bytes) -> int | None:
    group = head[297:329].rstrip(b"\x00")
    if len(group) != len(_MARK) + 16 or not group.startswith(_MARK):
        return None
    try:
        return int(group[len(_MARK) :], 16)
    except ValueError:
        return None
