"""What the audit log costs: one row with its waits for the disk, and the verification of a hundred thousand.

    python benchmarks/audit.py --output benchmarks/results/audit.json

The large log is written in one go, with the rows and signatures that single calls would have made.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from datetime import date
from pathlib import Path

from reports import command, timed

from omokage.pipelines.bench import machine
from omokage.trust import audit
from omokage.trust.audit import AuditLog
from omokage.trust.audit_check import verify
from omokage.trust.audit_row import keep, make_row
from omokage.trust.keys import signing_key

FACTS = {"kind": "clip", "sha256": "0" * 64, "bytes": 1_000_000, "origin": "generated", "is_labeled": True}
TARGET_S = 2.0


def filled(folder: Path, count: int) -> None:
    """A log of `count` rows more, each with something personal."""
    log = AuditLog(folder)
    last = log.append(audit.RELEASE, FACTS, {"path": "a.mp4"})
    key = signing_key()
    with (folder / audit.LOG).open("ab") as rows, (folder / audit.PERSONAL).open("ab") as kept:
        for _ in range(count):
            beside = keep(last.number + 1, {"path": "/videos/clip.mp4", "user": "reception"})
            last = make_row(beside.number, audit.RELEASE, FACTS, beside.hash, last.hash, key)
            rows.write(last.line + b"\n")
            kept.write(beside.line + b"\n")
    (folder / audit.HEAD).write_bytes(last.line + b"\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        os.environ["OMOKAGE_HOME"] = place  # a key of its own
        folder = Path(place) / "audit"
        log = AuditLog(folder)
        append, _ = timed(lambda: log.append(audit.RELEASE, FACTS, {"path": "a.mp4"}), 200)
        filled(folder, given.rows - 202)
        assert verify(folder).is_whole and verify(folder).rows == given.rows
        whole, whole_processor = timed(lambda: verify(folder), given.repeats)
        personal, size = (folder / audit.PERSONAL), (folder / audit.LOG).stat().st_size
        kept = personal.read_bytes()
        personal.unlink()
        chain, chain_processor = timed(lambda: verify(folder), given.repeats)
        personal.write_bytes(kept)
        behind, _ = timed(lambda: log.append(audit.RELEASE, FACTS, {"path": "a.mp4"}), 50)
    result = {
        "benchmark": "audit",
        "protocol": "seconds; one row: with the lock, three files and their way to the disk, 200 times in an empty log "
        f"and 50 times behind {given.rows} rows; verification: {given.repeats} times, of the chain alone and with what "
        "is personal of every row; processor_s: computing alone, which a busy machine does not lengthen",
        "command": command(),
        "date": date.today().isoformat(),
        "machine": machine(),
        "rows": given.rows,
        "log_mb": round(size / 1e6, 1),
        "target_verify_s": TARGET_S,
        "verify_chain_s": chain,
        "verify_chain_processor_s": chain_processor,
        "verify_with_personal_s": whole,
        "verify_with_personal_processor_s": whole_processor,
        "append_s": append,
        "append_behind_all_s": behind,
    }
    given.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
