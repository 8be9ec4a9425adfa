"""A network that leaves as a file: only with consent, and with a row in the audit log."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from omokage.errors import ConsentError, OutputError
from omokage.pipelines.export import export_model
from omokage.pipelines.stand_in import agree_for_nobody, stand_in
from omokage.trust.audit_report import last_rows
from omokage.trust.consent import Medium


@pytest.mark.usefixtures("denied_by_default")
def test_a_network_leaves_with_consent_and_a_row(tmp_path: Path) -> None:
    drawn, media = stand_in(128, clip_side=128).avatar, "e5" * 32
    person = replace(drawn, provenance=replace(drawn.provenance, recording_sha256=media))
    path, output = tmp_path / "me.avatar", tmp_path / "me.onnx"
    person.save(path)
    with pytest.raises(ConsentError, match="nobody's consent"):
        export_model(path, output)
    assert last_rows(1)[0][0].event == "refusal" and not output.exists()
    agree_for_nobody(Medium(media, "drawn"))
    released = export_model(path, output)
    onnx.checker.check_model(onnx.load(output))
    facts = last_rows(1)[0][0].facts
    assert (facts["kind"], facts["sha256"], facts["avatar"]) == ("onnx", released.sha256, media)
    assert len(facts["consent"]) == 64
    with pytest.raises(OutputError, match=r"use \.onnx"):
        export_model(path, tmp_path / "me.bin")
