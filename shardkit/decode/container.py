"""Containers opened by FFmpeg, safely: over any source, with its errors mapped to ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from shardkit.decode.extras import need
from shardkit.decode.seekable import SourceFile, open_file
from shardkit.decode.source import FileSource, Source
from shardkit.errors import DecodeError

__all__ = ["ffmpeg_errors", "open_container"]

# Media alone. Playlists (hls, concat, dash …) name other files and URLs, which FFmpeg would open.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegvideo,mpegts,asf,flv,ogg,wav,w64,mp3,"
    "aac,flac,aiff,caf,amr,ac3,eac3,au,ivf,h264,hevc,obu,gif,m4v,dv,rm,nut,mxf"
)
_REMOTE_BUFFER = 32 * 1024  # see seekable._BLOCK
_LOCAL_BUFFER = 256 * 1024


@contextlib.contextmanager
def open_container(source: Source) -> Iterator[Any]:
    """Open a source as a PyAV input container, and close it.

    A whole local file is read by FFmpeg itself; anything else through Python, by ranges.

    Raises:
        DecodeError: not a media file, or one of a format that opens other files.
        MissingDependencyError: PyAV is not installed.
    """
    av = need("av", "decoding video and sound")
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
    with contextlib.ExitStack() as stack:
        target: Any
        size = _LOCAL_BUFFER
        if isinstance(source, FileSource) and source.is_whole:
            target = "file:" + source.path
        else:
            target = stack.enter_context(open_file(source))
            size = _REMOTE_BUFFER if isinstance(target, SourceFile) else _LOCAL_BUFFER
            options["protocol_whitelist"] = ""
        with ffmpeg_errors(av):
            container = stack.enter_context(
                av.open(
                    target, container_options=options, metadata_errors="ignore", buffer_size=size
                )
            )
        with ffmpeg_errors(av):
            yield container


@contextlib.contextmanager
def ffmpeg_errors(av: Any) -> Iterator[None]:
    """Raise FFmpeg's errors as ``DecodeError``."""
    try:
        yield
    except av.FFmpegError as error:
        raise DecodeError(f"FFmpeg says: {error.strerror or error}") from error
