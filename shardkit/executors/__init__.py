"""Who runs a plan: the processes of this machine, a Ray cluster, or the tasks of an array job."""

from shardkit.executors.local import LocalExecutor, WorkerLostError, num_cores
from shardkit.executors.parts import WHOLE, Part
from shardkit.executors.protocol import Executor, Report, Task, nothing
from shardkit.executors.ray_executor import RayExecutor

__all__ = [
    "WHOLE",
    "Executor",
    "LocalExecutor",
    "Part",
    "RayExecutor",
    "Report",
    "Task",
    "WorkerLostError",
    "nothing",
    "num_cores",
]
