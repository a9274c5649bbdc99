"""What a forked child must not inherit: objects say here how to start anew in a child.

A fork copies locks that some other thread may hold, sockets that the parent goes on using, and
clients whose own threads are gone. Each such object is told in the child, before anything runs.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Protocol

__all__ = ["Forgetful", "keep_for_ever", "start_anew_in_children"]


class Forgetful(Protocol):
    """An object that can drop what belongs to the parent process."""

    def forget_parent(self) -> None:
        """Replace locks, connections and clients; called in the child, alone in its process."""
        ...


_alive: weakref.WeakSet[Forgetful] = weakref.WeakSet()


def start_anew_in_children(thing: Forgetful) -> None:
    """Have ``thing.forget_parent()`` called in every child that is forked from now on."""
    _alive.add(thing)


def keep_for_ever(thing: object) -> None:
    """Never free ``thing``, not even when the interpreter ends.

    For what a forked child inherits and must not close: a database connection, a client with
    threads in the parent.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _in_child() -> None:
    for thing in list(_alive):
        thing.forget_parent()


os.register_at_fork(after_in_child=_in_child)
