"""Imported before all others: when a benchmark of this folder began, what it imports included, and where the project's
own modules are, installed or not."""

import sys
import time
from pathlib import Path

STARTED = time.monotonic()
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
