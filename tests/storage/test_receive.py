"""Bodies that are received a buffer at a time are whole, whatever their length and pace."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from shardkit.errors import TransientError
from shardkit.storage.http_client import BUFFER, HttpClient

LENGTHS = [0, 1, BUFFER - 1, BUFFER, 2 * BUFFER - 1, 2 * BUFFER, 2 * BUFFER + 1, 5 * BUFFER + 7]
Piece = tuple[float, bytes]


@contextmanager
def serve(answers: list[list[Piece]], told: list[int]) -> Iterator[tuple[str, list[int]]]:
    """A server that sends each answer's pieces after their waits; and how often it was dialled."""
    listener = socket.create_server(("127.0.0.1", 0))
    dialled: list[int] = []

    def talk(connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as asked:
            while answers and asked.readline():
                while asked.readline() != b"\r\n":
                    pass
                pieces, length = answers.pop(0), told.pop(0)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length)
                for wait_s, piece in pieces:
                    time.sleep(wait_s)
                    connection.sendall(piece)

    def work() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            dialled.append(1)
            threading.Thread(target=talk, args=(connection,), daemon=True).start()

    threading.Thread(target=work, daemon=True).start()
    with listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/a", dialled


def read(client: HttpClient, url: str) -> bytes:
    body = client.open(url, url, 0, None, lambda: -1, buffer=memoryview(bytearray(BUFFER)))
    return b"".join(bytes(chunk) for chunk in body.chunks)


def test_bodies_of_any_length_come_whole_over_one_connection() -> None:
    bodies = [random.Random(n).randbytes(n) for n in LENGTHS]
    with serve([[(0, body)] for body in bodies], list(LENGTHS)) as (url, dialled):
        client = HttpClient({}, stall_s=5)
        assert [read(client, url) for _ in bodies] == bodies
        assert len(dialled) == 1


def test_a_body_that_drips_is_not_a_stall() -> None:
    body = random.Random(1).randbytes(3 * BUFFER)
    pieces = [(0.2, body[at : at + BUFFER // 2]) for at in range(0, len(body), BUFFER // 2)]
    with serve([pieces], [len(body)]) as (url, _):
        assert read(HttpClient({}, stall_s=0.5), url) == body


def test_silence_in_the_middle_is_a_passing_failure() -> None:
    pieces: list[Piece] = [(0, bytes(BUFFER + 10)), (3, b"")]
    with serve([pieces], [4 * BUFFER]) as (url, _), pytest.raises(TransientError, match="nothing"):
        read(HttpClient({}, stall_s=0.3), url)
