#!/usr/bin/env python3
"""Prove every byte of a packed dataset: the same as ``shardkit verify``, as a script.

    python tools/verify_shards.py OUT [--workers N] [--executor ray] [--part I/N] [--repair INDEX]

Exit status: 0 right, 1 wrong data, 2 could not run.
"""

import sys

from shardkit.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["verify", *sys.argv[1:]]))
