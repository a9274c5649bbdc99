"""What a forked child must not inherit: objects say here how to be forked, and how to start anew.

A fork copies locks that some other thread may hold, sockets that the parent goes on using, clients
whose own threads are gone, and SQLite's idea of which file locks this process holds. Each such
object is told before the fork, after it in the parent, and in the child before anything runs.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from typing import Protocol, runtime_checkable

__all__ = ["Forgetful", "Forkable", "importing", "keep_for_ever", "start_anew_in_children"]


class Forgetful(Protocol):
    """An object that can drop what belongs to the parent process."""

    def forget_parent(self) -> None:
        """Replace locks, connections and clients; called in the child, alone in its process."""
        ...


@runtime_checkable
class Forkable(Forgetful, Protocol):
    """An object that must also come to rest before a fork."""

    def rest_for_fork(self) -> None:
        """Finish what is under way and hold still; called by the thread that forks."""
        ...

    def go_on_after_fork(self) -> None:
        """Go on, in the parent."""
        ...


importing = threading.RLock()
"""Held by threads that import what is heavy: a child forked meanwhile would wait for ever for the
rest of that import, since the locks of modules are inherited as they are."""

_alive: weakref.WeakSet[Forgetful] = weakref.WeakSet()
_one_fork = threading.Lock()  # held from before a fork until after it
_resting: list[Forkable] = []  # guarded by _one_fork


def start_anew_in_children(thing: Forgetful) -> None:
    """Have ``thing`` told of every fork from now on; a ``Forkable`` in the parent too."""
    _alive.add(thing)


def keep_for_ever(thing: object) -> None:
    """Never free ``thing``, not even when the interpreter ends.

    For what a forked child inherits and must not close, such as a client with threads in the
    parent.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _before() -> None:
    _one_fork.acquire()
    for thing in sorted(_alive, key=id):  # one order for all threads
        if isinstance(thing, Forkable):
            thing.rest_for_fork()
            _resting.append(thing)
    importing.acquire()


def _in_parent() -> None:
    importing.release()
    while _resting:
        _resting.pop().go_on_after_fork()
    _one_fork.release()


def _in_child() -> None:
    global _one_fork  # noqa: PLW0603 - the inherited one is held
    _one_fork = threading.Lock()
    importing.release()  # it is this thread's: the one that forked
    _resting.clear()
    for thing in list(_alive):
        thing.forget_parent()


os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
