"""What holds for every test."""

import os
import tempfile

# `make test` runs two files at a time: each keeps to its own core, or they wait for each other at every step.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Keys, registers and models of the tests are not those of who runs them.
_home = tempfile.TemporaryDirectory(prefix="omokage-tests-")
os.environ["OMOKAGE_HOME"] = _home.name
for _name in ("OMOKAGE_MARK_KEY", "OMOKAGE_MARK_PROFILE"):
    os.environ.pop(_name, None)
