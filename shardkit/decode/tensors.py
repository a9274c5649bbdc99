"""Arrays and tensors: npy, npz, safetensors, pt (weights only), msgpack. None of it runs code."""

from __future__ import annotations

import io
import math
import zipfile
from typing import Any

import numpy as np
import numpy.typing as npt

from shardkit.decode.extras import need
from shardkit.decode.source import Data
from shardkit.errors import DecodeError

__all__ = ["decode_msgpack", "decode_npy", "decode_npz", "decode_pt", "decode_safetensors"]

_MAX_UNPACKED_BYTES = 4 << 30  # 4 GiB: ten times the largest latents we know; a zip bomb has more


def decode_npy(data: Data) -> npt.NDArray[Any]:
    """Decode one ``.npy`` array; arrays of Python objects are refused.

    The header's shape is checked against the bytes before anything is allocated.
    Format: NEP 1 of numpy, versions 1 to 3.
    """
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
    else:  # versions 2 and 3 differ in the encoding of field names alone
        shape, is_fortran, dtype = np.lib.format.read_array_header_2_0(file)
    if dtype.hasobject:
        raise DecodeError(
            "it holds Python objects, and unpickling runs code; if you trust the files, name it: "
            "decode={'npy': lambda data: numpy.load(io.BytesIO(data), allow_pickle=True)}"
        )
    start, count = file.tell(), math.prod(shape)
    if len(data) - start < count * dtype.itemsize:
        raise DecodeError(
            f"its header says shape {shape} of {dtype}, {count * dtype.itemsize} bytes, "
            f"but only {len(data) - start} follow: it was cut"
        )
    flat = np.frombuffer(data, dtype, count, start) if count else np.empty(0, dtype)
    return flat.reshape(shape, order="F" if is_fortran else "C").copy(order="K")


def decode_npz(data: Data) -> dict[str, npt.NDArray[Any]]:
    """Decode all arrays of an ``.npz``, by name."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        total = sum(info.file_size for info in archive.infolist())
        if total > _MAX_UNPACKED_BYTES:
            raise DecodeError(
                f"it unpacks to {total} bytes, more than the limit of {_MAX_UNPACKED_BYTES}; "
                f"if it should, give a decoder of your own: decode={{'npz': my_decoder}}"
            )
        return {
            info.filename.removesuffix(".npy"): decode_npy(_read_entry(archive, info))
            for info in archive.infolist()
        }


def _read_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    with archive.open(info) as file:
        entry = file.read(info.file_size + 1)  # a header that understates gets no more than it says
    if len(entry) != info.file_size:
        raise DecodeError(f"entry {info.filename!r} has another size than its header says")
    return entry


def decode_safetensors(data: Data) -> dict[str, Any]:
    """Decode a ``.safetensors`` file, by name: numpy arrays, or tensors where it has bfloat16/fp8.

    Raises:
        MissingDependencyError: safetensors is missing, or torch where numpy has no such type.
    """
    plain = bytes(data)
    header = plain[8 : 8 + int.from_bytes(plain[:8], "little")]
    if b'"BF16"' in header or b'"F8_' in header:
        tensors: dict[str, Any] = need("safetensors.torch", "bfloat16 in .safetensors").load(plain)
        return tensors
    arrays: dict[str, Any] = need("safetensors.numpy", "decoding .safetensors").load(plain)
    return arrays


def decode_pt(data: Data) -> Any:
    """Decode what ``torch.save`` wrote, tensors and plain containers only, on the CPU.

    Objects of other classes are refused, since unpickling them runs code.
    """
    torch = need("torch", "decoding .pt")
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def decode_msgpack(data: Data) -> Any:
    """Decode one MessagePack value; extension types stay ``msgpack.ExtType``."""
    msgpack = need("msgpack", "decoding .msgpack")
    return msgpack.unpackb(bytes(data), raw=False, strict_map_key=False)
