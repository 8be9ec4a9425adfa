"""`omokage check`: judge a recording, and release what was found as a picture, a text and JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from omokage.capture.check import check_recording
from omokage.capture.contact_sheet import contact_sheet
from omokage.capture.report import CaptureReport
from omokage.config import ProgressCallback, ignore_progress
from omokage.files import result_folder
from omokage.trust.release import ReleaseConfig, release_image, release_text


def check(
    path: Path, *, output: Path | None = None, on_progress: ProgressCallback = ignore_progress
) -> CaptureReport:
    """Measure and judge the recording at `path`.

    With `output`, a folder (made when missing), `contact-sheet.png`, `capture.txt` and `capture.json` are written
    there. Raises MediaError when the recording cannot be read, OutputError when the folder cannot be used.
    """
    if output is None:
        return check_recording(path, on_progress=on_progress)
    with result_folder(output):
        report = check_recording(path, on_progress=on_progress)
        sheet = np.array(contact_sheet(report, report.samples))
        release_image(sheet, output / "contact-sheet.png", config=ReleaseConfig(origin="recorded"))
        release_text(report.to_text(), output / "capture.txt")
        release_text(json.dumps(report.to_json(), indent=2, ensure_ascii=False), output / "capture.json")
    return report
