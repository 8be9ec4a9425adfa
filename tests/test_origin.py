"""Signed origin: what is whole and ours is trusted, every change is found, nothing is fetched, keys stay at home."""

from __future__ import annotations

import http.server
import io
import json
import re
import stat
import sys
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import av
import c2pa
import numpy as np
import PIL.Image
import pytest
import skimage.data

from clips import beep, make_clip, make_sound
from omokage.cli import app as cli
from omokage.errors import InputError, OutputError
from omokage.media import metadata, sandbox
from omokage.media.limits import InputLimits, use_input_limits
from omokage.media.manifest import Manifest
from omokage.media.records import RawManifest
from omokage.pipelines.verify import verify
from omokage.pipelines.verify_report import Verification, VerifyReport
from omokage.trust import consents
from omokage.trust import identity as identity_module
from omokage.trust.identity import identity, trust_root
from omokage.trust.origin import MEDIA_TYPES, OriginClaim, origin_of, read_origin, sign_origin
from omokage.trust.release import ReleaseConfig, release_image

CLAIM = OriginClaim(
    title="a clip",
    source_type="http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia",
    purpose="private",
    consent="c0" * 32,
    sources=("ab" * 32,),
    render_id="0123456789ab",
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OMOKAGE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = make_clip(tmp_path / "a.mp4", seconds=0.4)
    assert sign_origin(path, CLAIM, identity())
    return path


def _made(path: Path) -> Path:
    """A file of the kind that its name says."""
    if path.suffix in (".m4a", ".wav"):
        return make_sound(path, beep(0.1, 0.4))
    return make_clip(path, seconds=0.4) if path.suffix in (".mp4", ".mov") else _picture(path)


def _picture(path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 96, 3)).astype(np.uint8)
    PIL.Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("suffix", sorted(MEDIA_TYPES))
def test_what_is_signed_here_is_trusted_here(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path = _made(path)
    assert read_origin(path).state == "none"
    before = path.stat().st_size
    assert sign_origin(path, CLAIM, identity())
    origin = read_origin(path)
    assert (origin.state, origin.problems) == ("trusted", ())
    assert origin.said("render_id") == CLAIM.render_id != ""
    assert origin.signer == identity_module.ORGANIZATION and origin.software.startswith("omokage ")
    assert origin.source_type == CLAIM.source_type
    assert origin.own is not None
    assert (origin.own["consent"], origin.own["sources"]) == (CLAIM.consent, list(CLAIM.sources))
    assert [p.name for p in tmp_path.iterdir() if p.name != "home"] == [path.name]
    assert path.stat().st_size < before + 10_000  # no thumbnail of anybody


def test_a_strangers_manifest_is_read_in_the_decoders_process(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same is said, and nothing of it is read in this process, where files and sockets are open."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("it was read in this process")

    monkeypatch.setattr(c2pa, "Reader", refuse)
    assert read_origin(clip).state == "trusted"
    with (
        use_input_limits(InputLimits(is_sandboxed=False)),
        pytest.raises(AssertionError, match="this process"),
    ):
        read_origin(clip)


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", r"it broke down \(status -11\)"),
        ("import time; time.sleep(60)", r"it gave nothing for 0\.5 s"),
        ("print('{}', flush=True)", "gave no sensible answer"),
    ],
)
def test_a_reader_that_breaks_down_is_one_sentence(
    clip: Path, monkeypatch: pytest.MonkeyPatch, code: str, sentence: str
) -> None:
    monkeypatch.setattr(sandbox, "_command", lambda request: [sys.executable, "-c", code, request])
    with use_input_limits(InputLimits(silence_s=0.5)):
        origin = read_origin(clip)
    assert origin.state == "cannot be read" and len(origin.problems) == 1
    assert re.search(sentence, origin.problems[0]) and "\n" not in origin.problems[0]
    said = Verification(path=clip, verdict="no mark found", origin=origin)
    assert "signed origin: it is not known whether there is one" in said.to_text()
    assert VerifyReport((said,)).exit_code == 1


@pytest.mark.parametrize("store", ["{}", '{"manifests": {}, "active_manifest": "x"}', "[]", "7"])
def test_a_manifest_that_makes_no_sense_is_told(
    clip: Path, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    answer = f'{{"said": {store}, "state": "Trusted", "error": "", "hidden": []}}'.encode()
    monkeypatch.setattr(metadata, "run_once", lambda *_: RawManifest(answer))
    assert read_origin(clip).state == "cannot be read"


def test_what_a_manifest_says_cannot_command_a_terminal() -> None:
    said: Any = {
        "active_manifest": "x",
        "manifests": {"x": {"signature_info": {"issuer": "A\x1b[2J\nB"}, "claim_generator_info": []}},
    }
    assert origin_of(Manifest(said, "Trusted", "", ("a box '\x1b'",))).signer == "A [2J B"
    assert "\x1b" not in origin_of(Manifest(said, "Trusted", "", ("a box '\x1b'",))).problems[0]


def test_a_container_without_room_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.webm"
    path.write_bytes(b"\x1aE\xdf\xa3 a clip")
    assert not sign_origin(path, CLAIM, identity())
    assert path.read_bytes() == b"\x1aE\xdf\xa3 a clip" and read_origin(path).state == "none"


def test_reading_makes_no_keys(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMOKAGE_HOME", str(tmp_path / "reader"))
    assert read_origin(clip).state == "unknown signer"
    assert not (tmp_path / "reader").exists()


def _flip(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize(
    "change",
    [
        lambda c: _flip(c, c.index(b"mdat") + 200),
        lambda c: _flip(c, len(c) - 5),
        lambda c: c[:-50],
        lambda c: c + b"\x00\x00\x00\x20mdat" + bytes(24),
        lambda c: c.replace(b"private", b"publicx"),
        lambda c: c.replace(CLAIM.consent.encode(), b"d" * 64),
        lambda c: c.replace(b"trainedAlgorithmicMedia", b"digitalCapture?????????"),
    ],
)
def test_every_change_is_found(clip: Path, change) -> None:
    content = clip.read_bytes()
    assert change(content) != content
    clip.write_bytes(change(content))
    origin = read_origin(clip)
    assert origin.state == "altered" and origin.problems


def test_what_no_signature_covers_is_told(clip: Path) -> None:
    content = clip.read_bytes()
    for kind in (b"free", b"skip", b"mfra"):
        clip.write_bytes(content + b"\x00\x00\x00\x40" + kind + bytes(56))
        origin = read_origin(clip)
        assert any(f"'{kind.decode()}'" in problem for problem in origin.problems), kind
    clip.write_bytes(content + b"xyz")
    assert any("after the last box" in problem for problem in read_origin(clip).problems)


def test_a_file_with_ten_stores_is_not_believed_and_one_with_ten_generations_is_read(
    clip: Path, tmp_path: Path
) -> None:
    """Copies of a signature beside it are an attack; a file that was edited nine times carries ten manifests."""
    signed = clip.read_bytes()
    at = signed.index(b"uuid") - 4
    store = signed[at : at + int.from_bytes(signed[at : at + 4])]
    copied = tmp_path / "copied.mp4"
    copied.write_bytes(signed + 9 * store)
    assert read_origin(copied).state == "altered"
    assert "more than one manifest store" in read_origin(copied).problems[0]
    ours, edited = identity(), signed
    for number in range(9):
        before, after = edited, io.BytesIO()
        builder = c2pa.Builder(json.dumps(CLAIM.manifest()))
        parent = json.dumps({"title": f"version {number}", "relationship": "parentOf"})
        builder.add_ingredient(parent, "video/mp4", io.BytesIO(before))
        signer = c2pa.Signer.from_info(
            c2pa.C2paSignerInfo(
                alg=ours.algorithm.lower().encode(),
                sign_cert=ours.chain,
                private_key=ours.key,
                ta_url=None,
            )
        )
        builder.sign(signer, "video/mp4", io.BytesIO(before), after)
        edited = after.getvalue()
    path = tmp_path / "edited.mp4"
    path.write_bytes(edited)
    with c2pa.Reader("video/mp4", io.BytesIO(edited)) as reader:
        assert len(json.loads(reader.json())["manifests"]) == 10
    assert (read_origin(path).state, read_origin(path).problems) == ("trusted", ())


def test_a_copy_that_was_packed_anew_has_none(clip: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.mp4"
    with av.open(str(clip)) as source, av.open(str(copy), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    assert read_origin(copy).state == "none"


def test_a_name_does_not_decide_what_a_file_is(tmp_path: Path) -> None:
    picture = _picture(tmp_path / "a.jpg")
    sign_origin(picture, CLAIM, identity())
    named = picture.rename(tmp_path / "a.mp4")
    assert read_origin(named).state == "trusted"
    for content in (b"", b"text", b"\x00\x00\x00\x18ftypmp42", b"\xff\xd8\xff"):
        named.write_bytes(content)
        assert read_origin(named).state in ("none", "altered")


def test_damage_of_any_kind_is_never_trusted(clip: Path) -> None:
    """Within the manifest some bytes are padding; what it says and all that follows it is covered."""
    content, random = clip.read_bytes(), np.random.default_rng(0)
    said, after = read_origin(clip), content.index(b"moov")
    for _ in range(40):
        at = int(random.integers(after, len(content)))
        clip.write_bytes(_flip(content, at))
        assert read_origin(clip).state == "altered", at
    for _ in range(40):
        clip.write_bytes(_flip(content, int(random.integers(after))))
        assert read_origin(clip) == said or read_origin(clip).state != "trusted"


def test_someone_elses_signature_is_told_from_ours(
    clip: Path, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = home / "identity" / "root.pem"
    monkeypatch.setenv("OMOKAGE_HOME", str(tmp_path / "elsewhere"))
    identity(organization="Somebody else")
    origin = read_origin(clip)
    assert (origin.state, origin.signer) == ("unknown signer", identity_module.ORGANIZATION)
    told = trust_root(root)
    assert read_origin(clip).state == "trusted"
    monkeypatch.setenv("OMOKAGE_HOME", str(home))
    assert identity().fingerprint == told
    with pytest.raises(InputError, match="is no certificate"):
        trust_root(clip)


def test_nothing_is_fetched_whatever_a_file_says(tmp_path: Path) -> None:
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        path, signed = _picture(tmp_path / "a.jpg"), tmp_path / "b.jpg"
        mine = identity()
        signer = c2pa.Signer.from_info(
            c2pa.C2paSignerInfo(alg=b"es256", sign_cert=mine.chain, private_key=mine.key, ta_url=None)
        )
        builder = c2pa.Builder(CLAIM.manifest())
        builder.set_no_embed()
        builder.set_remote_url(f"http://127.0.0.1:{server.server_port}/manifest.c2pa")
        with path.open("rb") as source, signed.open("w+b") as target:
            builder.sign(signer, "image/jpeg", source, target)
        assert b"manifest.c2pa" in signed.read_bytes()
        assert read_origin(signed).state in ("none", "altered")
    finally:
        server.shutdown()
    assert asked == []


def test_keys_stay_at_home_and_are_their_owners(home: Path) -> None:
    mine = identity()
    folder = home / "identity"
    assert sorted(path.name for path in folder.iterdir()) == [
        "root.key",
        "root.pem",
        "signer.key",
        "signer.pem",
    ]
    if sys.platform != "win32":
        assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert identity() == mine


def test_a_certificate_is_renewed_before_its_end_and_never_used_after_it(home: Path) -> None:
    first = identity()
    soon = datetime.now(UTC) + timedelta(days=identity_module.SIGNER_DAYS - 10)
    second = identity(now=soon)
    assert second.root == first.root and second.certificate.not_valid_after_utc > soon + timedelta(days=300)
    # An authority elsewhere: there is no root key here.
    (home / "identity" / "root.key").unlink()
    late = second.certificate.not_valid_after_utc
    assert identity(now=late - timedelta(days=1)) == second
    with pytest.raises(InputError, match=r"ended on .* nothing can be signed"):
        identity(now=late + timedelta(days=1))


def test_damaged_keys_are_told(home: Path) -> None:
    identity()
    key = home / "identity" / "signer.key"
    key.write_text("no key")
    with pytest.raises(InputError, match="cannot be used"):
        identity()
    key.write_bytes((home / "identity" / "root.key").read_bytes())
    with pytest.raises(InputError, match="the key is of another certificate"):
        identity()


def test_a_file_that_cannot_be_signed_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"no clip at all")
    with pytest.raises(OutputError, match="could not be signed"):
        sign_origin(path, CLAIM, identity())
    assert path.read_bytes() == b"no clip at all"
    assert [p.name for p in tmp_path.iterdir() if p.name != "home"] == ["a.mp4"]


def test_the_manifest_says_what_it_must() -> None:
    manifest = replace(CLAIM, render_id="").manifest()
    text = json.dumps(manifest)
    first = manifest["assertions"][0]["data"]["actions"][0]
    assert first["action"] == "c2pa.created" and first["digitalSourceType"] == CLAIM.source_type
    assert "notAllowed" in text and "thumbnail" not in text
    assert "soft-binding" not in text  # of a file without a mark
    bound = replace(CLAIM, render_id="dcfc73be1b55").manifest()["assertions"][-1]
    assert bound["label"] == "c2pa.soft-binding"
    assert bound["data"] == {"alg": "org.omokage.mark.1", "blocks": [{"scope": {}, "value": "dcfc73be1b55"}]}


# the command


def test_the_commands_of_an_identity(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    assert cli.run(["identity", "show"]) == 0
    said = capsys.readouterr().out
    assert identity_module.ORGANIZATION in said and identity().fingerprint in said
    root = tmp_path / "our-root.pem"
    assert cli.run(["identity", "export", "-o", str(root)]) == 0
    assert b"PRIVATE" not in root.read_bytes() and root.read_bytes() == identity().root
    monkeypatch.setenv("OMOKAGE_HOME", str(tmp_path / "elsewhere"))
    assert cli.run(["identity", "trust", str(root)]) == 0
    assert cli.run(["identity", "new", "--organization", "Example AS"]) == 0
    assert identity().organization == "Example AS"
    capsys.readouterr()
    assert cli.run(["identity", "new", "--organization", "Another"]) == InputError.exit_code
    assert "is there already" in capsys.readouterr().err
    assert identity().organization == "Example AS"


@pytest.mark.usefixtures("signed", "denied_by_default")
def test_verify_says_what_an_origin_says_and_how_the_consent_stands_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recording = tmp_path / "me.mp4"
    recording.write_bytes(b"a recording")
    assert cli.run(["consent", "new", str(recording), "--me", "--purpose", "private"]) == 0
    (record,) = consents.all_records()
    shown = tmp_path / "shown"
    shown.mkdir()
    picture = np.ascontiguousarray(skimage.data.astronaut())
    config = ReleaseConfig(purpose="private", consent=record.id)
    release_image(picture, shown / "a.jpg", config=config)

    (found,) = verify(shown / "a.jpg").files
    assert found.origin.state == "trusted" and "holds until" in found.consent
    consents.revoke(record, "")
    assert "WITHDRAWN" in verify(shown / "a.jpg").files[0].consent
    assert cli.run(["verify", str(shown / "a.jpg")]) == 0
    said = capsys.readouterr().out
    assert "signed origin: whole, signed by" in said and "trainedAlgorithmicMedia, for private" in said

    content = (shown / "a.jpg").read_bytes()
    PIL.Image.open(shown / "a.jpg").save(shown / "b.png")  # saved anew: the manifest is gone, the mark is not
    (copy,) = verify(shown / "b.png").files
    assert (copy.origin.state, copy.verdict, copy.consent) == ("none", "made with omokage", "")
    (shown / "a.jpg").write_bytes(content.replace(b"private", b"publicx"))
    altered = verify(shown / "a.jpg")
    assert altered.files[0].origin.state == "altered" and altered.exit_code == 1
    monkeypatch.setenv("OMOKAGE_HOME", str(tmp_path / "elsewhere"))
    (shown / "a.jpg").write_bytes(content)
    (elsewhere,) = verify(shown / "a.jpg").files
    assert (elsewhere.origin.state, elsewhere.consent) == ("unknown signer", "")
