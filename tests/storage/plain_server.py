"""A web server that answers exactly what it is told, piece by piece."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["BODY", "HEAD", "Pieces", "serve"]

BODY = random.Random(1).randbytes(110_000)
HEAD = b'HTTP/1.1 200 OK\r\nContent-Length: 110000\r\nETag: "v1"\r\n\r\n'
Pieces = list[bytes | float | None]
"""What a server sends: bytes, a wait in seconds, or the end of the connection."""


@contextmanager
def serve(*answers: Pieces) -> Iterator[tuple[str, list[bytes]]]:
    """A server that gives these answers in turn; and what it was asked, a request line each."""
    listener = socket.create_server(("127.0.0.1", 0))
    asked: list[bytes] = []
    left = list(answers)
    dialled: list[int] = []

    def talk(connection: socket.socket) -> None:
        dialled.append(1)
        with (
            contextlib.suppress(ConnectionError),  # the client has had enough
            connection,
            connection.makefile("rb") as lines,
        ):
            while left and (line := lines.readline()):
                asked.append(b"%d %s" % (len(dialled), line.split()[1]))
                while lines.readline() != b"\r\n":
                    pass
                for piece in left.pop(0):
                    if piece is None:
                        return
                    if isinstance(piece, float):
                        time.sleep(piece)
                    else:
                        connection.sendall(piece)

    def work() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(connection,), daemon=True).start()

    threading.Thread(target=work, daemon=True).start()
    with listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked
