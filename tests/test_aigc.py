"""The label profile `cn` also writes the metadata field that GB 45438-2025 asks for, under the signature."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from xml.etree import ElementTree

import av
import numpy as np
import PIL.Image
import pytest
import skimage.data

from omokage.media.metadata import read_comment
from omokage.trust.aigc import NAMESPACE
from omokage.trust.identity import ORGANIZATION
from omokage.trust.origin import read_origin
from omokage.trust.release import ReleaseConfig, release_clip, release_image

PICTURE = np.ascontiguousarray(skimage.data.astronaut()[:256, :256])
FIELDS = [
    "Label", "ContentProducer", "ProduceID", "ReservedCode1", "ContentPropagator", "PropagateID", "ReservedCode2",
]  # fmt: skip


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMOKAGE_HOME", str(tmp_path / "home"))


def _tags(path: Path) -> dict[str, str]:
    with av.open(str(path)) as container:
        return dict(container.metadata)


@pytest.mark.usefixtures("signed")
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".webm"])
def test_a_clip_says_it(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    config = ReleaseConfig(label="cn", title="迎宾")
    released = release_clip([PICTURE] * 2, path, frame_rate=Fraction(25), config=config)
    said = json.loads(_tags(path)["AIGC"])
    assert list(said) == FIELDS
    assert (said["Label"], said["ContentProducer"], said["ProduceID"]) == (
        "1",
        ORGANIZATION,
        released.render_id,
    )
    assert read_comment(path).startswith("AI-generated with omokage") and _tags(path)["title"] == "迎宾"
    if suffix != ".webm":
        assert read_origin(path).state == "trusted"
        content = path.read_bytes()
        path.write_bytes(content.replace(b'"Label":"1"', b'"Label":"2"'))
        assert read_origin(path).state == "altered"


@pytest.mark.usefixtures("signed")
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_picture_says_it(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    released = release_image(PICTURE, path, config=ReleaseConfig(label="cn"))
    info = PIL.Image.open(path).info
    packet = info["XML:com.adobe.xmp"] if suffix == ".png" else info["xmp"].decode()
    root = ElementTree.fromstring(packet[packet.index("<x:") : packet.index("<?xpacket end")])
    (field,) = root.iter(f"{{{NAMESPACE}}}AIGC")
    said = json.loads(field.text or "")
    assert list(said) == FIELDS and said["ProduceID"] == released.render_id
    assert read_origin(path).state == "trusted"


@pytest.mark.parametrize(("label", "origin"), [("eu", "generated"), (None, "generated"), ("cn", "recorded")])
def test_other_labels_and_recordings_do_not(tmp_path: Path, label: str | None, origin) -> None:
    release_image(PICTURE, tmp_path / "a.jpg", config=ReleaseConfig(label=label, origin=origin))
    assert b"AIGC" not in (tmp_path / "a.jpg").read_bytes()
    if origin == "generated":
        release_clip(
            [PICTURE] * 2, tmp_path / "a.mp4", frame_rate=Fraction(25), config=ReleaseConfig(label=label)
        )
        assert "AIGC" not in _tags(tmp_path / "a.mp4")
