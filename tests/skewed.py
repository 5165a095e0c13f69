"""Runs a worker whose wall clock is off: `python -m tests.skewed SECONDS workers.storage ...`; ahead is positive."""

import runpy
import sys
import time

from common import clock

if __name__ == "__main__":
    skew_ns = int(float(sys.argv[1]) * 10**9)
    clock.wall_ns = lambda: time.time_ns() + skew_ns
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
