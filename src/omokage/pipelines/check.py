"""`omokage check`: judge a recording, and release what was found as a picture, a text and JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from omokage.capture.check import check_recording
from omokage.capture.contact_sheet import contact_sheet
from omokage.capture.report import CaptureReport
from omokage.config import ProgressCallback, ignore_progress
from omokage.errors import OutputError
from omokage.trust.release import release_image, release_text


def check(
    path: Path, *, output: Path | None = None, on_progress: ProgressCallback = ignore_progress
) -> CaptureReport:
    """Measure and judge the recording at `path`.

    With `output`, a folder (made when missing), `contact-sheet.png`, `capture.txt` and `capture.json` are written
    there. Raises MediaError when the recording cannot be read, OutputError when the folder cannot be used.
    """
    is_new = output is not None and _make_folder(output)
    try:
        report = check_recording(path, on_progress=on_progress)
    except BaseException:
        if output is not None and is_new:
            output.rmdir()
        raise
    if output is not None:
        release_image(np.array(contact_sheet(report, report.samples)), output / "contact-sheet.png")
        release_text(report.to_text(), output / "capture.txt")
        release_text(json.dumps(report.to_json(), indent=2, ensure_ascii=False), output / "capture.json")
    return report


def _make_folder(folder: Path) -> bool:
    """Make it before the long work; returns whether it is new."""
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot use {folder} as a folder ({error.strerror}); choose another -o") from error
    return is_new
