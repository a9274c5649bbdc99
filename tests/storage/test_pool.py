from __future__ import annotations

from shardkit.storage.pool import Pool


class Connection:
    def __init__(self) -> None:
        self.is_open = True

    def close(self) -> None:
        self.is_open = False


def test_what_is_given_back_is_taken_again_by_its_server_alone() -> None:
    pool: Pool[str, Connection] = Pool()
    first, second = Connection(), Connection()
    pool.give_back("a", first)
    pool.give_back("a", second)
    assert pool.take("b") is None
    assert pool.take("a") is second and pool.take("a") is first
    assert pool.take("a") is None and len(pool) == 0
    assert first.is_open and second.is_open


def test_of_one_server_no_more_are_kept_than_are_used_at_once() -> None:
    pool: Pool[str, Connection] = Pool()
    connections = [Connection() for _ in range(70)]
    for connection in connections:
        pool.give_back("a", connection)
    assert [connection.is_open for connection in connections] == [False] * 6 + [True] * 64
    assert len(pool) == 64


def test_of_thousands_of_servers_the_last_are_kept() -> None:
    """Or a crawled index would use up the descriptors of its process."""
    pool: Pool[int, Connection] = Pool()
    connections = [Connection() for _ in range(3_000)]
    for server, connection in enumerate(connections):
        pool.give_back(server, connection)
    assert sum(connection.is_open for connection in connections) == len(pool) == 128
    assert pool.take(2_999) is connections[-1] and pool.take(0) is None
