"""What every store keeps: a class whose tests each store inherits, given a place to work in."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from shardkit.errors import CorruptError, NotFoundError, StoreError
from shardkit.storage.store import Store

ODD_NAME = "odd name +%~(é).txt"


@dataclass(frozen=True)
class Place:
    """A store, a folder of its own, and how to spell a name as part of a URL."""

    store: Store
    url: str
    write: Callable[[str, bytes], None]
    spell: Callable[[str], str] = str

    def at(self, name: str) -> str:
        return f"{self.url}/{self.spell(name)}"


class ReadContract:
    """Reading: every store. Subclasses provide the fixture ``place``."""

    def test_gets_what_was_written_whatever_the_name(self, place: Place) -> None:
        for name in ("a.txt", "deep/er/b.bin", ODD_NAME, "empty"):
            data = b"" if name == "empty" else name.encode() * 3
            place.write(name, data)
            assert place.store.get(place.at(name)) == data
            assert b"".join(place.store.get_chunks(place.at(name))) == data

    def test_ranges_are_exact_and_empty_ones_cost_nothing(self, place: Place) -> None:
        data = bytes(range(256)) * 40
        place.write("r", data)
        url = place.at("r")
        assert place.store.get_range(url, 10, 20) == data[10:20]
        assert place.store.get_range(url, 0, len(data)) == data
        assert place.store.get_range(url, 7, 7) == b""
        assert place.store.get_range(url, len(data) - 1, len(data)) == data[-1:]

    def test_many_ranges_come_back_in_the_order_asked_for(self, place: Place) -> None:
        data = os.urandom(700_000)
        place.write("m", data)
        ranges = [(600_000, 600_100), (5, 9), (0, 3), (5, 5), (4, 8), (699_999, 700_000)]
        found = place.store.get_ranges(place.at("m"), ranges)
        assert found == [data[start:stop] for start, stop in ranges]
        assert place.store.get_ranges(place.at("m"), []) == []

    def test_chunks_stream_a_part_of_a_big_object(self, place: Place) -> None:
        data = os.urandom(3_000_000)
        place.write("big", data)
        assert b"".join(place.store.get_chunks(place.at("big"))) == data
        assert b"".join(place.store.get_chunks(place.at("big"), 2_999_990)) == data[-10:]
        assert (
            b"".join(place.store.get_chunks(place.at("big"), 100, 2_000_000)) == data[100:2_000_000]
        )

    def test_streaming_into_a_function_gives_the_same_bytes(self, place: Place) -> None:
        data = os.urandom(3_000_000)
        place.write("to", data)
        for start, stop in ((0, None), (100, None), (5, 2_500_000), (0, 1)):
            found = bytearray()
            place.store.stream_to(place.at("to"), found.extend, start, stop)
            assert found == data[start:stop]

    def test_what_is_not_there_is_not_found_and_not_retried(self, place: Place) -> None:
        place.write("here", b"x")
        url = place.at("not-here")
        for ask in (
            lambda: place.store.get(url),
            lambda: place.store.get_range(url, 0, 1),
            lambda: place.store.stat(url),
            lambda: list(place.store.get_chunks(url)),
        ):
            with pytest.raises(NotFoundError, match="not-here") as caught:
                ask()
            assert isinstance(caught.value, FileNotFoundError)

    def test_a_folder_is_not_an_object(self, place: Place) -> None:
        place.write("folder/x", b"x")
        with pytest.raises(NotFoundError):
            place.store.stat(place.at("folder"))

    def test_a_range_past_the_end_says_how_long_the_object_is(self, place: Place) -> None:
        place.write("short", b"12345")
        for start, stop in ((3, 8), (5, 6), (10, 20)):
            with pytest.raises(CorruptError, match="5 bytes"):
                place.store.get_range(place.at("short"), start, stop)

    def test_stat_tells_the_size_and_a_version_that_changes_with_the_content(
        self, place: Place
    ) -> None:
        place.write("v", b"one")
        before = place.store.stat(place.at("v"))
        assert (before.url, before.size) == (place.at("v"), 3)
        assert place.store.stat(place.at("v")) == before
        place.write("v", b"three")
        after = place.store.stat(place.at("v"))
        assert after.size == 5
        assert after.version != before.version or place.url.startswith("http")  # 1 s there

    def test_a_copy_that_was_pickled_reads_the_same(self, place: Place) -> None:
        place.write("p", b"pickled")
        place.store.get(place.at("p"))
        assert pickle.loads(pickle.dumps(place.store)).get(place.at("p")) == b"pickled"


class WriteContract(ReadContract):
    """Writing, listing, deleting: every store but web servers."""

    def test_puts_replace_and_make_folders(self, place: Place) -> None:
        place.store.put(place.at("x/y/z"), b"old")
        place.store.put(place.at("x/y/z"), b"newer")
        assert place.store.get(place.at("x/y/z")) == b"newer"

    def test_put_file_takes_big_files_in_parts(self, place: Place, tmp_path: Path) -> None:
        data = os.urandom(17_000_000)
        (tmp_path / "source").write_bytes(data)
        place.store.put_file(place.at("up/big"), str(tmp_path / "source"))
        assert place.store.get(place.at("up/big")) == data

    def test_lists_everything_below_a_folder_sorted_and_nothing_beside_it(
        self, place: Place
    ) -> None:
        names = ["l/a", "l/b.txt", "l/b/c", "l/b/d/e", f"l/{ODD_NAME}", "l2/no", "l.no"]
        for name in names:
            place.write(name, name.encode())
        found = list(place.store.list(place.at("l")))
        assert [info.url for info in found] == sorted(place.at(n) for n in names[:5])
        assert all(place.store.stat(info.url) == info for info in found)
        assert list(place.store.list(place.at("l") + "/")) == found
        assert list(place.store.list(place.at("nothing"))) == []

    def test_deleting_twice_is_no_error(self, place: Place) -> None:
        place.store.put(place.at("d"), b"x")
        place.store.delete(place.at("d"))
        place.store.delete(place.at("d"))
        with pytest.raises(NotFoundError):
            place.store.get(place.at("d"))


class ReadOnlyContract(ReadContract):
    """Web servers: writing and listing say why not."""

    def test_writing_and_listing_are_refused_with_the_remedy(
        self, place: Place, tmp_path: Path
    ) -> None:
        for act in (
            lambda: place.store.put(place.at("x"), b""),
            lambda: place.store.put_file(place.at("x"), str(tmp_path)),
            lambda: place.store.delete(place.at("x")),
        ):
            with pytest.raises(StoreError, match="read only"):
                act()
        with pytest.raises(StoreError, match="index or a list"):
            list(place.store.list(place.url))
