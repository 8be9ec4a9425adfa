"""What holds for every test."""

import os

# `make test` runs two files at a time: each keeps to its own core, or they wait for each other at every step.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
