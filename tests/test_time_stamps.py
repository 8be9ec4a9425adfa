"""Time stamps and keys elsewhere: what was stamped outlives its certificate; by default nobody is asked."""

from __future__ import annotations

import hashlib
import http.server
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from clips import beep, make_clip, make_sound
from omokage.cli import app as cli
from omokage.errors import AuditError, InputError, OutputError
from omokage.pipelines.verify import verify
from omokage.trust import audit
from omokage.trust import identity as identity_module
from omokage.trust.audit import AuditLog
from omokage.trust.certificates import Certified, issue, make_root
from omokage.trust.countersignature import stamped_manifest
from omokage.trust.identity import _USAGES, Identity, identity, keep_program, sign_with
from omokage.trust.origin import MEDIA_TYPES, OriginClaim, read_origin, sign_origin
from omokage.trust.release import check_writable, release_image, release_text
from omokage.trust.stamp_authority import choose, stamp_authority
from omokage.trust.time_stamp import StampAuthority

CLAIM = OriginClaim("a", "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia")
PICTURE = np.random.default_rng(0).integers(0, 255, (64, 96, 3)).astype(np.uint8)
DAY = timedelta(days=1)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("OMOKAGE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(identity_module, "_given", None)
    yield tmp_path / "home"


def picture(path: Path) -> Path:
    PIL.Image.fromarray(PICTURE).save(path)
    return path


def own_authority() -> StampAuthority:
    identity()
    authority = stamp_authority()
    assert isinstance(authority, StampAuthority)
    return authority


def age(made: datetime) -> float:
    return abs((datetime.now(UTC) - made).total_seconds())


# the stamp


@pytest.mark.parametrize("suffix", sorted(MEDIA_TYPES))
def test_a_stamp_by_this_installation_is_trusted_here(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix in (".m4a", ".wav"):
        path = make_sound(path, beep(0.1, 0.4))
    else:
        path = make_clip(path, seconds=0.4) if suffix in (".mp4", ".mov") else picture(path)
    authority = own_authority()
    size = path.stat().st_size
    assert sign_origin(path, CLAIM, identity(), stamps=authority)
    origin = read_origin(path)
    assert (origin.state, origin.problems) == ("trusted", ())
    assert age(datetime.fromisoformat(origin.stamped)) < 100
    assert path.stat().st_size < size + 20_000  # no thumbnail of anybody
    assert [p.name for p in tmp_path.iterdir() if p.name != "home"] == [path.name]
    if suffix in (".png", ".jpg"):
        np.testing.assert_allclose(
            np.asarray(PIL.Image.open(path)), PICTURE, atol=255 if suffix == ".jpg" else 0
        )


def test_what_was_stamped_stays_trusted_after_its_certificate_has_ended(tmp_path: Path, home: Path) -> None:
    authority = own_authority()
    root, now = identity_module.read_root(), datetime.now(UTC)
    assert root is not None
    end = now.replace(microsecond=0) + timedelta(seconds=2)
    short = issue(root, "short-lived", now, end, _USAGES)
    signer = Identity(short.pem, short.key_pem, root.pem)
    stamped, plain, late = (picture(tmp_path / f"{name}.jpg") for name in ("stamped", "plain", "late"))
    sign_origin(stamped, CLAIM, signer, stamps=authority)
    sign_origin(plain, CLAIM, signer)
    tomorrow = _Backdated(authority.held, now + DAY)
    with pytest.raises(OutputError, match="could not be signed"):  # a stamp from after the certificate's end
        sign_origin(late, CLAIM, signer, stamps=tomorrow)
    assert (read_origin(stamped).state, read_origin(plain).state) == ("trusted", "trusted")
    time.sleep(max(0.0, (end - datetime.now(UTC)).total_seconds() + 1.01))
    assert read_origin(stamped).state == "trusted"
    ended = read_origin(plain)
    assert ended.state == "expired" and "signingCredential.expired" in ended.problems
    report = verify(plain)
    assert report.exit_code == 1 and "whose certificate has ended" in report.to_text()
    assert "time stamp: signed on 20" in verify(stamped).to_text()
    content = plain.read_bytes()
    plain.write_bytes(content[:-30] + bytes([content[-30] ^ 1]) + content[-29:])
    assert read_origin(plain).state == "altered"


class _Backdated(StampAuthority):
    """Says another time than the clock."""

    def __init__(self, held: Certified, when: datetime) -> None:
        super().__init__(held)
        object.__setattr__(self, "when", when)

    def stamp(self, digest: bytes, now: datetime | None = None) -> bytes:
        return super().stamp(digest, self.when)  # type: ignore[attr-defined]


def test_a_stamp_by_a_stranger_is_not_released(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    root = make_root("Somebody else", now, now + DAY)
    stranger = issue(root, "time", now, now + DAY, (ExtendedKeyUsageOID.TIME_STAMPING,), is_critical=True)
    path = picture(tmp_path / "a.jpg")
    content = path.read_bytes()
    with pytest.raises(OutputError, match=r"a\.jpg could not be signed \(its time stamp does not hold"):
        sign_origin(path, CLAIM, identity(), stamps=StampAuthority(stranger))
    assert path.read_bytes() == content
    assert [p.name for p in tmp_path.iterdir() if p.name != "home"] == ["a.jpg"]


def test_a_stamp_is_of_one_signature_only(tmp_path: Path) -> None:
    """Moved to another file's signature it counts for nothing."""
    authority = own_authority()

    def token(number: int) -> tuple[Path, bytes, slice]:
        """A stamped file, its bytes, and where its token is; a signature has 70 to 72 bytes, as chance has it."""
        path = picture(tmp_path / f"{number}.jpg")
        sign_origin(path, CLAIM, identity(), stamps=authority)
        content = path.read_bytes()
        at = content.index(b"tstTokens")
        return path, content, slice(at, at + int.from_bytes(content[at + 16 : at + 18], "big") + 18)

    _, one, where = token(0)
    others = (token(number) for number in range(1, 60))
    second, other, into = next(
        found for found in others if found[2].stop - found[2].start == where.stop - where.start
    )
    assert read_origin(second).stamped != ""
    second.write_bytes(other[: into.start] + one[where] + other[into.stop :])
    assert one[where] != other[into]
    assert read_origin(second).stamped == ""


def test_a_manifest_without_room_is_told_from_one_with_room(tmp_path: Path) -> None:
    from omokage.errors import InternalError

    authority = own_authority()
    for manifest in (
        b"",
        b"\xd2\x84\x41x\xa1\x63pad\x41\x00\xf6\x41s",
        b"\xd2\x84\x41x\xa1\x63pad\x41\x07\xf6\x41s",
    ):
        with pytest.raises(InternalError):
            stamped_manifest(manifest, authority)
    room = b"\xd2\x84\x43x\xd2\x84\xa1\x63pad\x59\x20\x00" + bytes(0x2000) + b"\xf6\x44s\xd2\x84s"
    stamped = stamped_manifest(room, authority)  # what looks like a beginning inside is none
    assert len(stamped) == len(room) and stamped.endswith(room[-6:])


# who stamps


def test_the_authority_is_made_once_and_lies_with_its_owner(home: Path) -> None:
    first, second = own_authority(), own_authority()
    assert first.held.certificate == second.held.certificate
    folder = home / "time-stamps"
    assert sorted(path.name for path in folder.iterdir()) == ["stamper.key", "stamper.pem"]
    if sys.platform != "win32":
        assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    shutil.rmtree(home / "identity")  # a new root does not vouch for the old authority
    assert own_authority().held.certificate != first.held.certificate
    (folder / "stamper.key").write_text("no key")
    with pytest.raises(InputError, match=r"stamper\.pem cannot be used"):
        check_writable(home.parent / "a.mp4", (".mp4",))


def test_without_the_roots_key_there_is_no_own_authority(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    identity()
    (home / "identity" / "root.key").unlink()
    assert stamp_authority() is None
    assert cli.run(["identity", "show"]) == 0
    assert "time stamps: none, since the root's key is not here" in capsys.readouterr().out


def test_a_clock_that_was_set_back_is_told(home: Path) -> None:
    mine = identity()
    with pytest.raises(InputError, match=r"the clock of this machine says .* set the clock right"):
        identity(now=mine.certificate.not_valid_before_utc - DAY)
    with pytest.raises(InputError, match=r"the clock of this machine says"):
        own_authority()
        stamp_authority(now=mine.certificate.not_valid_before_utc - DAY)


def test_nothing_leaves_when_the_clock_is_behind_the_audit_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release_text("fine", tmp_path / "a.txt")

    class Earlier(datetime):
        @classmethod
        def now(cls, tz=None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) - back

    monkeypatch.setattr(audit, "datetime", Earlier)
    back = timedelta(hours=20)
    release_text("fine", tmp_path / "b.txt")
    back = timedelta(hours=25)
    with pytest.raises(AuditError, match=r"the clock of this machine says .* set the clock right"):
        release_text("fine", tmp_path / "c.txt")
    with pytest.raises(AuditError, match="the clock"):
        check_writable(tmp_path / "c.txt", (".txt",))
    assert not (tmp_path / "c.txt").exists()
    back = timedelta()
    release_text("fine", tmp_path / "c.txt")
    assert AuditLog().personal()


@pytest.mark.usefixtures("signed")
def test_releases_are_stamped_unless_that_was_turned_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["identity", "new", "--organization", "Example AS"]) == 0
    assert "time stamps: by this installation" in capsys.readouterr().out
    release_image(PICTURE, tmp_path / "a.jpg")
    assert read_origin(tmp_path / "a.jpg").stamped
    assert cli.run(["identity", "stamps", "none"]) == 0
    assert capsys.readouterr().out == "time stamps: none\n"
    release_image(PICTURE, tmp_path / "b.jpg")
    assert read_origin(tmp_path / "b.jpg").state == "trusted" and not read_origin(tmp_path / "b.jpg").stamped
    assert cli.run(["identity", "stamps", "own"]) == 0
    for wrong in ("ftp://example.org", "https://", "yes"):
        assert cli.run(["identity", "stamps", wrong]) == InputError.exit_code
        assert "use 'own', 'none' or an address" in capsys.readouterr().err
    assert cli.run(["identity", "stamps"]) == 0
    assert capsys.readouterr().out == "time stamps: by this installation\n"


@pytest.mark.usefixtures("signed")
def test_an_authority_elsewhere_is_asked_only_when_its_address_was_given(tmp_path: Path) -> None:
    asked = list[bytes]()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_error(500)

        def log_message(self, *_: object) -> None: ...

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        release_image(PICTURE, tmp_path / "a.jpg")
        assert asked == []
        address = f"http://127.0.0.1:{server.server_port}/stamps"
        choose(address)
        with pytest.raises(OutputError, match=rf"b\.jpg could not be signed by {address}"):
            release_image(PICTURE, tmp_path / "b.jpg")
    finally:
        server.shutdown()
    assert len(asked) == 1 and len(asked[0]) < 200  # a hash, and nothing of the picture
    assert [p.name for p in tmp_path.iterdir() if p.name != "home"] == ["a.jpg"]


@pytest.mark.usefixtures("signed")
@pytest.mark.skipif(shutil.which("openssl") is None, reason="the stranger's stamps are made by openssl")
def test_an_authority_elsewhere_stamps_and_is_believed_by_whoever_trusts_its_root(tmp_path: Path) -> None:
    """An authority that is none of ours: OpenSSL's, behind an address."""
    now, folder = datetime.now(UTC), tmp_path / "elsewhere"
    folder.mkdir()
    root = make_root("Stamps and Sons", now, now + 9 * DAY)
    stamper = issue(root, "time", now, now + DAY, (ExtendedKeyUsageOID.TIME_STAMPING,), is_critical=True)
    for name, content in (
        ("root.pem", root.pem), ("stamper.pem", stamper.pem), ("stamper.key", stamper.key_pem), ("serial", b"01"),
    ):  # fmt: skip
        (folder / name).write_bytes(content)
    (folder / "settings").write_text(
        "[tsa]\ndefault_tsa = one\n[one]\nserial = serial\ncrypto_device = builtin\nsigner_cert = stamper.pem\n"
        "certs = root.pem\nsigner_key = stamper.key\nsigner_digest = sha256\ndefault_policy = 1.2.3.4.1\n"
        "digests = sha256, sha384, sha512\naccuracy = secs:1\n"
    )

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            (folder / "query").write_bytes(self.rfile.read(int(self.headers["content-length"])))
            command = [
                "openssl",
                "ts",
                "-reply",
                "-config",
                "settings",
                "-queryfile",
                "query",
                "-out",
                "reply",
            ]
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
            self.send_response(200)
            self.send_header("content-type", "application/timestamp-reply")
            self.end_headers()
            self.wfile.write((folder / "reply").read_bytes())

        def log_message(self, *_: object) -> None: ...

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        choose(f"http://127.0.0.1:{server.server_port}/")
        release_image(PICTURE, tmp_path / "a.jpg")
    finally:
        server.shutdown()
    before = read_origin(tmp_path / "a.jpg")
    assert (before.state, before.stamped) == ("trusted", "")  # stamped by somebody whom nobody here knows
    assert cli.run(["identity", "trust", str(folder / "root.pem")]) == 0
    after = read_origin(tmp_path / "a.jpg")
    assert after.state == "trusted"
    assert age(datetime.fromisoformat(after.stamped)) < 60


# keys elsewhere

# A stand-in for a hardware security module: the key comes from no file, and it answers as such programs do.
MODULE = """
import sys
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
how, data = sys.argv[1], sys.stdin.buffer.read()
if how == "locked":
    sys.exit("the token is locked")
key = ec.derive_private_key(4711 if how != "other" else 4712, ec.SECP256R1())
sys.stdout.buffer.write(key.sign(data, ec.ECDSA(SHA256())) if how != "silent" else b"")
"""
KEY = ec.derive_private_key(4711, ec.SECP256R1())


@pytest.fixture
def module(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Certificate, root, and program of a key that lies in no file."""
    folder = tmp_path / "home" / "elsewhere"
    folder.mkdir(parents=True)
    now = datetime.now(UTC)
    root = make_root("Example AS", now, now + 100 * DAY)
    drawn, ec.generate_private_key = ec.generate_private_key, lambda *_: KEY
    try:
        signer = issue(root, "in a module", now, now + 50 * DAY, _USAGES)
    finally:
        ec.generate_private_key = drawn
    for name, content in (("chain.pem", signer.pem), ("root.pem", root.pem), ("module.py", MODULE.encode())):
        (folder / name).write_bytes(content)
    return folder / "chain.pem", folder / "root.pem", folder / "module.py"


def command(module: tuple[Path, Path, Path], how: str) -> list[str]:
    return [str(module[0]), str(module[1]), sys.executable, str(module[2]), how]


@pytest.mark.usefixtures("signed")
def test_a_program_signs_whose_key_lies_in_no_file(
    tmp_path: Path, home: Path, module: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for how, said in (
        ("locked", "ended with status 1: the token is locked"),
        ("other", "no signature by the key of the signing certificate"),
        ("silent", "no signature by the key"),
    ):
        assert cli.run(["identity", "external", *command(module, how)]) == InputError.exit_code
        assert said in capsys.readouterr().err
    assert not (home / "identity").exists()
    assert cli.run(["identity", "external", *command(module, "right")]) == 0
    assert "Example AS, until" in capsys.readouterr().out
    assert cli.run(["identity", "external", *command(module, "right")]) == InputError.exit_code
    release_image(PICTURE, tmp_path / "a.jpg")
    origin = read_origin(tmp_path / "a.jpg")
    assert (origin.state, origin.signer) == ("trusted", "Example AS")
    assert sorted(path.name for path in (home / "identity").iterdir()) == [
        "root.pem",
        "signer.json",
        "signer.pem",
    ]
    kept = home / "identity" / "signer.json"
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"command": command(module, "locked")[2:]}))
    with pytest.raises(OutputError, match=r"b\.jpg could not be signed \(.* the token is locked\)"):
        release_image(PICTURE, tmp_path / "b.jpg")
    assert not (tmp_path / "b.jpg").exists()
    kept.write_text("{}")
    with pytest.raises(InputError, match=r"signer\.json names no program"):
        identity()
    kept.write_text(json.dumps({"format": 1, "command": ["no-such-program-here"]}))
    with pytest.raises(OutputError, match="no-such-program-here cannot be started"):
        release_image(PICTURE, tmp_path / "b.jpg")


@pytest.mark.usefixtures("signed")
def test_a_python_callable_signs(tmp_path: Path, home: Path, module: tuple[Path, Path, Path]) -> None:
    seen = list[bytes]()

    def raw(data: bytes) -> bytes:
        """r and s behind each other, as many modules answer."""
        seen.append(data)
        r, s = decode_dss_signature(KEY.sign(data, ec.ECDSA(SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    chain, root = module[0].read_bytes(), module[1].read_bytes()
    with pytest.raises(InputError, match="no signature by the key"):
        sign_with(chain, root, lambda data: b"\x30" + data[:70])
    sign_with(chain, root, raw)
    path = make_clip(tmp_path / "a.mp4", seconds=0.4)
    assert sign_origin(path, CLAIM, identity(), stamps=stamp_authority())
    origin = read_origin(path)
    assert (origin.state, origin.signer) == (
        "unknown signer",
        "Example AS",
    )  # nobody here was told of the root
    identity_module.trust_root(module[1])
    assert read_origin(path).state == "trusted"
    assert max(map(len, seen)) < 4000  # never the film
    assert not (home / "identity" / "signer.pem").exists()
    with pytest.raises(InputError, match="ended on"):
        identity(now=datetime.now(UTC) + 51 * DAY)


def test_other_kinds_of_keys(tmp_path: Path) -> None:
    """An organization's own certificate need not be on P-256."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import NoEncryption, PrivateFormat

    now = datetime.now(UTC)
    root = make_root("Example AS", now, now + 100 * DAY)
    made = issue(root, "signer", now, now + DAY, _USAGES)
    for key, name in (
        (ec.generate_private_key(ec.SECP384R1()), "ES384"),
        (ed25519.Ed25519PrivateKey.generate(), "ED25519"),
        (rsa.generate_private_key(65537, 2048), "PS256"),
    ):
        builder = x509.CertificateBuilder(
            made.certificate.issuer,
            made.certificate.subject,
            key.public_key(),
            x509.random_serial_number(),
            now - DAY,
            now + DAY,
        )
        for extension in made.certificate.extensions:
            builder = builder.add_extension(extension.value, extension.critical)
        chain = builder.sign(root.key, SHA256()).public_bytes(Encoding.PEM)
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        signer = Identity(chain, pem, root.pem)
        assert signer.algorithm == name
        signer.sign(b"x")
        for stamps in (None, own_authority()):
            path = picture(tmp_path / f"{name}.jpg")
            sign_origin(path, CLAIM, signer, stamps=stamps)
            assert read_origin(path).state == "unknown signer"
    weak = rsa.generate_private_key(65537, 1024).public_key()
    with pytest.raises(InputError, match="that C2PA does not allow"):
        identity_module.algorithm_of(weak)


def test_a_token_is_over_the_digest_it_was_given() -> None:
    digest = hashlib.sha256(b"x").digest()
    token = own_authority().stamp(digest)
    assert digest in token and own_authority().stamp(digest) != token  # another number


def test_a_program_that_is_not_there(module: tuple[Path, Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be started"):
        keep_program(module[0], module[1], [str(tmp_path / "nothing")])
    with pytest.raises(InputError, match="cannot be read"):
        keep_program(tmp_path / "nothing.pem", module[1], ["x"])
