from __future__ import annotations

import gzip
import io
import json
import pickle
import subprocess
import sys
import zipfile
from functools import partial

import numpy as np
import pytest

from shardkit import decode as room
from shardkit.decode import registry
from shardkit.decode.registry import Decoders, decode_member, register_decoder
from shardkit.decode.source import BytesSource, FileSource, StoreSource
from shardkit.errors import (
    ConfigError,
    CorruptError,
    DecodeError,
    MissingDependencyError,
    NotFoundError,
    StoreError,
    TransientError,
)
from tests import media


def shout(data: bytes) -> str:
    """A user's decoder, importable so that it pickles."""
    return data.decode().upper()


def npy(array: np.ndarray, **options: bool) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def test_each_ext_has_its_object() -> None:
    assert decode_member("json", b'{"a": [1, null]}') == {"a": [1, None]}
    assert decode_member("jsonl", b'{"a": 1}\n\n{"a": 2}\r\n') == [{"a": 1}, {"a": 2}]
    assert decode_member("txt", "\ufeffgrün\n".encode()) == "grün\n"
    assert decode_member("cls", b" 17\n") == 17
    assert decode_member("jpg", media.jpeg()).shape == (48, 64, 3)
    assert decode_member("wav", media.plain_wav(media.tone(), 16_000)).samples.shape == (2, 16_000)
    assert decode_member("mp4", media.video(5)).clip(1).frames.shape == (1, 64, 96, 3)
    assert decode_member("npy", npy(np.arange(6).reshape(2, 3))).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_the_last_suffix_decides_and_case_does_not() -> None:
    assert decode_member("seg.PNG", media.save_png()).shape == (48, 64, 3)
    assert decode_member("JSON", b"3") == 3
    assert decode_member("meta.v2.json", b"3") == 3


def test_gz_is_decompressed_first() -> None:
    assert decode_member("json.gz", gzip.compress(b"[1]")) == [1]
    assert decode_member("blob.gz", gzip.compress(b"[1]")) == b"[1]"
    assert decode_member("gz", b"as it is") == b"as it is"
    with pytest.raises(DecodeError, match=r"cannot decode \.json\.gz \(4 bytes\)"):
        decode_member("json.gz", b"oops")


def test_a_gzip_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_MAX_GUNZIPPED_BYTES", 1000)
    with pytest.raises(DecodeError, match="decompresses to more than 1000 bytes"):
        decode_member("txt.gz", gzip.compress(bytes(1001)))
    assert len(decode_member("txt.gz", gzip.compress(bytes(1000)))) == 1000


def test_unknown_exts_and_pickles_stay_bytes() -> None:
    for ext in ("pkl", "pickle", "pyd", "bin", ""):
        assert decode_member(ext, b"\x80\x04N.") == b"\x80\x04N."


def test_none_gives_bytes() -> None:
    assert decode_member("json", memoryview(b"{}"), decode=None) == b"{}"
    assert Decoders(None).for_ext("mp4") is None
    assert not Decoders(None).takes_source("mp4")


def test_a_mapping_overrides_per_ext() -> None:
    decoders = Decoders({"txt": shout, "JSON": None, ".seg.png": len, "pkl": pickle.loads})
    assert decoders.for_ext("txt")(memoryview(b"a")) == "A"  # user functions get real bytes
    assert decoders.for_ext("de.txt")(b"b") == "B"
    assert decoders.for_ext("json") is None
    assert decoders.for_ext("seg.png")(b"12345") == 5
    assert decoders.for_ext("png") is not None
    assert decoders.for_ext("cls")(b"3") == 3
    assert decoders.for_ext("pkl")(pickle.dumps({1})) == {1}


def test_a_star_stands_for_all_others() -> None:
    decoders = Decoders({"json": "auto", "*": None})
    assert decoders.for_ext("json")(b"1") == 1
    assert decoders.for_ext("meta.json")(b"1") == 1
    assert decoders.for_ext("jpg") is None
    assert decoders.for_ext("unknown") is None
    assert Decoders({"*": shout}).for_ext("anything")(b"x") == "X"


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="decode='pil': give \"auto\""):
        Decoders("pil")
    with pytest.raises(ConfigError, match=r"decode\['jpg'\] is 'rgb'"):
        Decoders({"jpg": "rgb"})
    with pytest.raises(ConfigError, match="give a function of bytes"):
        register_decoder("x", decoder=3)


def test_a_decoder_is_registered_once_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    before = Decoders()
    register_decoder("Loud", ".txt", decoder=shout)
    assert decode_member("loud", b"a") == "A"
    assert decode_member("txt", b"a") == "A"
    assert decode_member("txt", b"a", decode={"txt": bytes}) == b"a"
    assert decode_member("txt", b"a", decode={"txt": "auto", "*": None}) == "A"
    assert before.for_ext("loud") is None


def test_raw_members_are_left_to_the_transforms() -> None:
    decoders = Decoders("auto", raw=("jpg", "MP3"))
    assert decoders.for_ext("jpg") is None
    assert decoders.for_ext("png") is not None
    assert not decoders.takes_source("jpg")
    assert decoders.for_ext("mp3") is None
    assert decoders.takes_source("mp3")
    assert decoders.takes_source("mp4")
    assert decoders.takes_source("clip.MOV")
    column = Decoders("auto", raw=("Photo", "film"))
    assert column.for_ext("jpg", "Photo") is None
    assert column.for_ext("jpg", "other") is not None
    assert column.takes_source("mov", "film")
    named = Decoders({"jpg": shout}, raw=("jpg",))
    assert named.for_ext("jpg")(b"a") == "A"


def test_decoders_pickle() -> None:
    decoders = Decoders({"txt": shout, "jpg": partial(room.decode_image, mode="L")}, raw=("wav",))
    decoders.for_ext("txt")
    again = pickle.loads(pickle.dumps(decoders))
    assert again.for_ext("txt")(b"a") == "A"
    assert again.for_ext("jpg")(media.jpeg()).shape == (48, 64, 1)
    assert again.for_ext("wav") is None
    assert pickle.loads(pickle.dumps(decoders.for_ext("json")))(b"1") == 1


GARBAGE = (b"", b"\xc1\xff garbage \xfe", b"\xc1{", b"\xc1\x93NUMPY\x01\x00")
EXTS = [
    ext
    for ext, decoder in registry._BUILT_IN.items()
    if decoder not in (registry.decode_text, registry.decode_jsonl)  # empty is good there
]


@pytest.mark.parametrize("ext", [*EXTS, "json.gz"])
@pytest.mark.parametrize("data", GARBAGE, ids=range(4))
def test_garbage_is_a_decode_error_in_every_decoder(ext: str, data: bytes) -> None:
    with pytest.raises(DecodeError, match=rf"cannot decode \.{ext} \({len(data)} bytes\)"):
        result = decode_member(ext, data)
        if isinstance(result, room.Video):  # lazy: its errors show when it is used
            try:
                result.clip(1)
            except DecodeError as error:
                raise DecodeError(f"cannot decode .{ext} ({len(data)} bytes): {error}") from error


def test_errors_of_users_decoders_are_decode_errors_with_their_cause() -> None:
    with pytest.raises(
        DecodeError, match=r"cannot decode \.txt \(1 bytes\): KeyError: 'x'"
    ) as info:
        decode_member("txt", b"a", decode={"txt": lambda data: {}["x"]})
    assert isinstance(info.value.__cause__, KeyError)


def test_installation_and_network_errors_are_not_the_samples_fault() -> None:
    def missing(data: bytes) -> None:
        raise MissingDependencyError("install it")

    def broken(data: bytes) -> None:
        raise TransientError("network")

    def full(data: bytes) -> None:
        raise MemoryError

    for decoder, kind in (
        (missing, MissingDependencyError),
        (broken, TransientError),
        (full, MemoryError),
    ):
        with pytest.raises(kind):
            decode_member("x", b"", decode={"x": decoder})


def test_a_missing_library_says_what_to_install() -> None:
    code = (
        "import sys\n"
        "for name in ('PIL', 'simplejpeg', 'av', 'torch', 'soundfile', 'msgpack', 'safetensors'):\n"
        "    sys.modules[name] = None\n"
        "from shardkit.decode import decode_member\n"
        "from shardkit.errors import MissingDependencyError\n"
        "assert decode_member('json', b'1') == 1\n"
        "for ext in ('png', 'm4a', 'pt', 'msgpack', 'safetensors'):\n"
        "    try:\n"
        "        decode_member(ext, b'0123456789abcdef')\n"
        "    except MissingDependencyError as error:\n"
        "        assert 'install shardkit[train]' in str(error), error\n"
        "    else:\n"
        "        raise SystemExit(ext)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_the_room_imports_no_heavy_library() -> None:
    code = (
        "import sys, shardkit.decode, shardkit.transforms\n"
        "heavy = {'torch', 'av', 'PIL', 'simplejpeg', 'soundfile', 'torchaudio', 'pyarrow'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Tensors


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.zeros((0, 3), np.int8),
        np.float64(3.5),
        np.array(["a", "bc"]),
        np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
        np.arange(3, dtype=">i4"),
    ],
)
def test_npy_roundtrip(array: np.ndarray) -> None:
    result = decode_member("npy", npy(array))
    assert result.dtype == array.dtype
    assert np.array_equal(result, array)
    assert result.flags.writeable


def test_arrays_of_objects_run_no_code() -> None:
    data = npy(np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(DecodeError, match=r"unpickling runs code; if you trust"):
        decode_member("npy", data)
    file = io.BytesIO()
    np.savez(file, a=np.array([print], dtype=object))
    with pytest.raises(DecodeError, match="unpickling runs code"):
        decode_member("npz", file.getvalue())


def test_an_npy_that_promises_terabytes_is_refused() -> None:
    data = npy(np.zeros(3))
    huge = data.replace(b"(3,), }", b"(9999999999999,), }")[: len(data)]
    with pytest.raises(DecodeError, match="it was cut"):
        decode_member("npy", huge)
    with pytest.raises(DecodeError, match="it was cut"):
        decode_member("npy", data[:-1])


def test_npz_by_name_and_its_bombs(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    np.savez_compressed(file, mean=np.ones((4, 2)), logvar=np.zeros(3))
    arrays = decode_member("npz", file.getvalue())
    assert sorted(arrays) == ["logvar", "mean"]
    assert arrays["mean"].sum() == 8
    monkeypatch.setattr("shardkit.decode.tensors._MAX_UNPACKED_BYTES", 100)
    with pytest.raises(DecodeError, match="more than the limit of 100"):
        decode_member("npz", file.getvalue())
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(DecodeError):
        decode_member("npz", other.getvalue())


def test_safetensors_and_pt() -> None:
    import torch
    from safetensors.numpy import save
    from safetensors.torch import save as save_torch

    arrays = decode_member("safetensors", save({"x": np.arange(4, dtype=np.float16)}))
    assert arrays["x"].tolist() == [0, 1, 2, 3]
    tensors = decode_member("safetensors", save_torch({"x": torch.ones(2, dtype=torch.bfloat16)}))
    assert tensors["x"].dtype == torch.bfloat16
    file = io.BytesIO()
    torch.save({"x": torch.arange(3)}, file)
    assert decode_member("pt", file.getvalue())["x"].tolist() == [0, 1, 2]
    file = io.BytesIO()
    torch.save({"x": shout}, file)
    with pytest.raises(DecodeError, match="weights"):
        decode_member("pt", file.getvalue())


def test_msgpack_is_a_value() -> None:
    import msgpack

    assert decode_member("msgpack", msgpack.packb({"a": [1, b"x"]})) == {"a": [1, b"x"]}


def test_a_bad_line_of_jsonl_is_numbered() -> None:
    with pytest.raises(DecodeError, match="line 2 is not JSON"):
        decode_member("jsonl", b'{"a": 1}\n{"a": \n')
    deep = b"[" * 100_000
    with pytest.raises(DecodeError):
        decode_member("json", deep)


# Sources


class Memory:
    """A store of one object."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def get_range(self, url: str, start: int, stop: int) -> bytes:
        return self.data[start:stop]


def test_every_source_reads_the_same(tmp_path) -> None:
    whole = json.dumps({"padding": "x" * 100}).encode()
    path = tmp_path / "shard.tar"
    path.write_bytes(b"HEAD" + whole + b"TAIL")
    sources = [
        BytesSource(whole),
        BytesSource(memoryview(b"HEAD" + whole)[4:]),
        FileSource(str(path), 4, len(whole)),
        StoreSource(Memory(path.read_bytes()), "s3://b/shard.tar", len(whole), 4),
    ]
    for source in sources:
        again = pickle.loads(pickle.dumps(source))
        assert again.size == len(whole)
        assert bytes(again.read(3, 9)) == whole[3:9]
        assert bytes(again.read(again.size, again.size)) == b""
        assert decode_member("json", source)["padding"] == "x" * 100
        with pytest.raises(StoreError, match="which has"):
            again.read(3, len(whole) + 1)


def test_a_source_that_shrank_is_corrupt(tmp_path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123")
    source = FileSource(str(path), 0, 8)
    with pytest.raises(CorruptError, match="gave 4 bytes for the range 0 to 8"):
        source.read(0, 8)
    path.unlink()
    with pytest.raises(NotFoundError, match="cannot read"):
        source.read(0, 8)
    with pytest.raises(NotFoundError):
        FileSource(str(path))
