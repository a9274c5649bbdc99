"""shardkit: training data from files to GPUs."""

__version__ = "0.1.0"
