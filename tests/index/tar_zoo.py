"""Tars as others write them: every format and oddity, each made by a few lines."""

from __future__ import annotations

import gzip
import io
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = ["FOREIGN", "member", "write_tar"]

Entry = tuple[tarfile.TarInfo, bytes]


def member(name: str, data: bytes = b"data", **fields: object) -> Entry:
    """A regular file, or whatever ``type=`` says."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def write_tar(
    path: Path, entries: Sequence[Entry], tar_format: int = tarfile.USTAR_FORMAT, **options: object
) -> Path:
    """Write entries with Python's own writer."""
    with tarfile.open(path, "w", format=tar_format, **options) as tar:  # type: ignore[call-overload]
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))
    return path


def _samples(*exts: str, count: int = 5, prefix: str = "") -> list[Entry]:
    return [
        member(f"{prefix}{i:03d}.{ext}", f"{i} {ext}".encode() * (i + 1))
        for i in range(count)
        for ext in exts
    ]


def _ustar(path: Path) -> None:
    write_tar(path, _samples("jpg", "json"))


def _gnu_long_names(path: Path) -> None:
    write_tar(path, _samples("jpg", "json", prefix="d" * 120 + "/"), tarfile.GNU_FORMAT)


def _pax_long_names(path: Path) -> None:
    write_tar(path, _samples("jpg", "json", prefix="d" * 300 + "/"), tarfile.PAX_FORMAT)


def _pax_unicode_names(path: Path) -> None:
    write_tar(path, _samples("jpg", "json", prefix="kätzchen/猫-"), tarfile.PAX_FORMAT)


def _pax_on_every_member(path: Path) -> None:
    entries = [member(f"{i:03d}.txt", b"x" * i, mtime=1.5 + i) for i in range(9)]
    write_tar(path, entries, tarfile.PAX_FORMAT)


def _pax_global(path: Path) -> None:
    headers = {"comment": "made by a test", "SCHILY.xattr.user.a": "b"}
    write_tar(path, _samples("jpg"), tarfile.PAX_FORMAT, pax_headers=headers)


def _ustar_prefix(path: Path) -> None:
    write_tar(path, _samples("jpg", "json", prefix="p" * 90 + "/" + "q" * 60 + "/"))


def _dot_slash(path: Path) -> None:
    write_tar(path, _samples("jpg", "json", prefix="./"))


def _directories(path: Path) -> None:
    folder = member("cat/", b"", type=tarfile.DIRTYPE)
    write_tar(path, [folder, *_samples("jpg", prefix="cat/"), member("dog", b"", type=b"5")])


def _old_directories(path: Path) -> None:
    folder = member("cat/", b"", type=tarfile.AREGTYPE)
    files = [member(f"cat/{i}.jpg", b"1" * i, type=tarfile.AREGTYPE) for i in range(4)]
    write_tar(path, [folder, *files])


def _uneven(path: Path) -> None:
    write_tar(
        path,
        [
            member("a.jpg"),
            member("a.json"),
            member("b.json"),
            member("c.seg.PNG"),
            member("c.JPG"),
            member("d.jpg", b""),
        ],
    )


def _meta_entries(path: Path) -> None:
    names = [
        "__meta__/info.json",
        "__worker__",
        "__x__/__y__/z.jpg",
        "a.jpg",
        "__b.jpg",
        "__c__d.jpg",
    ]
    write_tar(path, [member(name) for name in [*names, "a/__meta__/b.jpg", "__", "___", "____"]])


def _odd_names(path: Path) -> None:
    names = [
        ".hidden",
        "dir/.hidden.jpg",
        "README",
        "no.dir/x",
        "a b c.jpg",
        "v1.2/x.y.z.txt",
        "dir/x.jpg",
    ]
    write_tar(path, [member(name) for name in [*names, "x.", "UPPER.JPG", "trailing/.", "ü.jpg"]])


def _same_key_apart(path: Path) -> None:
    write_tar(path, [member("a.jpg"), member("b.jpg"), member("a.json"), member("dir/a.json")])


def _links_and_devices(path: Path) -> None:
    write_tar(
        path,
        [
            member("a.jpg"),
            member("a.link", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
            member("a.hard", b"", type=tarfile.LNKTYPE, linkname="a.jpg"),
            member("a.pipe", b"", type=tarfile.FIFOTYPE),
            member("a.dev", b"", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
            member("a.json"),
        ],
    )


def _escaping_paths(path: Path) -> None:
    write_tar(path, [member("../../etc/x.jpg"), member("/etc/y.jpg"), member("a/../../z.jpg")])


def _unknown_types(path: Path) -> None:
    write_tar(
        path,
        [
            member("label", b"volume", type=b"V"),
            member("a.jpg", b"1" * 700, type=tarfile.CONTTYPE),
            member("b.jpg", b"2" * 700, type=b"Z"),
            member("c.jpg", b"3" * 700),
        ],
    )


def _no_end_marker(path: Path) -> None:
    _ustar(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data.rstrip(b"\0")) + 511 & ~511])


def _two_joined(path: Path) -> None:
    _ustar(path)
    path.write_bytes(path.read_bytes() * 2)


def _empty(path: Path) -> None:
    write_tar(path, [])


def _gnu_tar(path: Path, *options: str) -> None:
    folder = path.with_suffix(".files")
    for i in range(12):
        file = folder / f"class{i % 3}" / f"{i:02d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"j" * (i * 300))
        file.with_suffix(".json").write_bytes(b"{}")
    (folder / "class0" / "link.jpg").symlink_to("00.jpg")
    subprocess.run(["tar", *options, "-cf", path, "-C", folder, "."], check=True)


def _gzipped(path: Path) -> None:
    _ustar(path)
    path.write_bytes(gzip.compress(path.read_bytes()))


def _tar_in_tar(path: Path) -> None:
    inner = write_tar(path.with_suffix(".inner"), _samples("jpg"))
    write_tar(path, [member("a.tar", inner.read_bytes()), member("a.jpg"), member("b.jpg")])


FOREIGN: dict[str, Callable[[Path], None]] = {
    "ustar": _ustar,
    "GNU long names": _gnu_long_names,
    "PAX long names": _pax_long_names,
    "PAX unicode names": _pax_unicode_names,
    "PAX on every member": _pax_on_every_member,
    "PAX global": _pax_global,
    "USTAR prefix": _ustar_prefix,
    "dot slash": _dot_slash,
    "directories": _directories,
    "old directories": _old_directories,
    "uneven": _uneven,
    "meta entries": _meta_entries,
    "odd names": _odd_names,
    "same key apart": _same_key_apart,
    "links and devices": _links_and_devices,
    "escaping paths": _escaping_paths,
    "unknown types": _unknown_types,
    "no end marker": _no_end_marker,
    "two joined": _two_joined,
    "empty": _empty,
    "GNU tar": lambda path: _gnu_tar(path, "--format=gnu"),
    "GNU tar PAX": lambda path: _gnu_tar(path, "--format=posix"),
    "GNU tar old": lambda path: _gnu_tar(path, "--format=v7"),
    "gzipped": _gzipped,
    "tar in tar": _tar_in_tar,
}
"""By name: writes the tar to a path."""
