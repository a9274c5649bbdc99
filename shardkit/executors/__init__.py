"""Who runs a plan: the processes of this machine, or a Ray cluster."""

from shardkit.executors.local import LocalExecutor, WorkerLostError, num_cores
from shardkit.executors.protocol import Executor, Report, Task, nothing

__all__ = [
    "Executor",
    "LocalExecutor",
    "Report",
    "Task",
    "WorkerLostError",
    "nothing",
    "num_cores",
]
