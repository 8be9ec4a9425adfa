"""`omokage verify`: what pictures, videos, sounds and avatar files say of where they come from. MAIN: `verify`.

No file is changed and no socket is opened. What is not found is told as 'no mark found', never as 'real'.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from omokage.config import Progress, ProgressCallback, ignore_progress
from omokage.errors import ConsentError, InputError, MediaError
from omokage.media.clip import Image
from omokage.media.decode import probe, read_frames, read_image
from omokage.media.metadata import read_comment
from omokage.media.source import PICTURE, SOUND_DEMUXERS, sniff
from omokage.pipelines.verify_avatar import AvatarFile
from omokage.pipelines.verify_consent import consent_for, consent_named, consent_of_render
from omokage.pipelines.verify_report import (
    VERDICTS,
    PrivateMark,
    PublicMark,
    SoundMarks,
    Verdict,
    Verification,
    VerifyReport,
)
from omokage.pipelines.verify_sound import listen
from omokage.threads import one_blas_thread
from omokage.trust.fingerprint_search import Copy
from omokage.trust.mark_key import installation_key, key_path, read_key
from omokage.trust.mark_pattern import PRIVATE_BITS, PRODUCT, PUBLIC_BITS, PUBLIC_KEY, chips_of
from omokage.trust.mark_search import (
    LEAST_PRIVATE_SCORE,
    LEAST_PUBLIC_SCORE,
    LEAST_SEARCHED_PX,
    Evidence,
    Found,
    Key,
    find,
)
from omokage.trust.marking import id_text, pattern_key
from omokage.trust.origin import read_origin
from omokage.trust.recognition import recognised
from omokage.trust.registry import renders_of
from omokage.trust.sound_search import SoundFound
from omokage.trust.video_mark import PUBLIC_SHARE

SECONDS: Final = 30.0  # of a video
FRAMES: Final = 60  # spread over them


@one_blas_thread()
def verify(
    path: Path, *, keys: Sequence[Path] = (), on_progress: ProgressCallback = ignore_progress
) -> VerifyReport:
    """Look for the marks of omokage in a picture, video or sound, or in all of a folder and of the folders in it.

    Avatar files, which carry none, are told as such.

    keys: files of other installations' keys, or of earlier ones, to look for besides this installation's own. Of a
    video 60 frames from its first 30 seconds are looked at, of sound the first two minutes listened to. Raises
    MediaError for a single file that cannot be read, InputError for a folder without any of these and for a file that
    is no key, ConsentError when it is not known what was withdrawn.
    """
    path = Path(path)
    secrets = [read_key(Path(key)) for key in keys]
    if key_path().exists():
        secrets.append(installation_key())
    if not path.is_dir():
        return VerifyReport((_told(path, secrets),))
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and not file.is_symlink()]
    shown = [file for file in files if _is_known(file)]
    if not shown:
        raise InputError(
            f"{path} holds no picture or video, no sound and no avatar file; give a folder that does, or a file"
        )
    found = []
    for done, file in enumerate(shown):
        on_progress(Progress("verifying", done, len(shown), file.name))
        try:
            found.append(_told(file, secrets))
        except ConsentError:
            raise
        except InputError as error:
            found.append(Verification(path=file, verdict="cannot be read", problem=str(error)))
    on_progress(Progress("verifying", len(shown), len(shown)))
    return VerifyReport(tuple(found), len(files) - len(shown))


def _is_known(path: Path) -> bool:
    try:
        sniff(path)
    except MediaError:
        return _is_avatar(path)
    return True


def _is_avatar(path: Path) -> bool:
    try:
        return AvatarFile.read(path) is not None
    except MediaError:  # damaged, or cannot be read: only what bears the name is told of
        return path.suffix == ".avatar"


def _told(path: Path, secrets: Sequence[bytes]) -> Verification:
    avatar = AvatarFile.read(path)
    if avatar is None:
        return _verified(path, secrets)
    return Verification(
        path=path, verdict="avatar file", kind="avatar", avatar=avatar, consent=consent_for(avatar.media)
    )


def _verified(path: Path, secrets: Sequence[bytes]) -> Verification:
    kind, evidence, copy, size = sniff(path), Evidence(), Copy(), (0, 0)
    heard = None if kind == PICTURE else listen(path, secrets)
    if heard is not None and heard.problem and kind in SOUND_DEMUXERS and not heard.seconds:
        raise MediaError(heard.problem)
    if kind not in SOUND_DEMUXERS and (heard is None or heard.has_video):
        for image, time_s, is_looked_at in _pictures(path):
            copy.add(image, time_s)
            if is_looked_at:
                evidence.add(image)
            size = image.shape[1], image.shape[0]
    if min(size) < LEAST_SEARCHED_PX:
        found = [Found(None, False, 0.0, 0.0, None)] * (1 + len(secrets))
    else:
        found = find(evidence.plane(), _keys(secrets))
    public, private, synchronisation = _marks(found)
    origin = read_origin(path)
    seen = Verification(
        path=path,
        kind="picture" if kind == PICTURE else "video" if evidence.frame_count else "sound",
        verdict=max(_verdict(found), _verdict(heard.found if heard else ()), key=VERDICTS.index),
        public=public,
        private=private,
        synchronisation=synchronisation,
        sound=SoundMarks(*_marks(heard.found), heard.seconds, heard.problem) if heard else None,
        disclosure=read_comment(path),
        origin=origin,
        fingerprint=recognised(copy),
        frame_count=evidence.frame_count,
        width=size[0],
        height=size[1],
    )
    if origin.state == "trusted" and (number := origin.said("consent")):
        return replace(seen, consent=consent_named(number))
    return replace(seen, consent_of_render=_consent_of_render(seen))


def _consent_of_render(seen: Verification) -> str:
    """Where no trusted origin names one: of the record that the marked render rests on."""
    sound = seen.sound.private if seen.sound else None
    own = None if seen.looks_like_its_render is False else seen.private
    renders = dict.fromkeys(mark.render_id for mark in (own, sound) if mark is not None and mark.render_id)
    return "; ".join(said for render_id in renders if (said := consent_of_render(render_id)))


def _pictures(path: Path) -> Iterator[tuple[Image, float, bool]]:
    """Frames, when they are shown (s), and which to look at for marks. Raises MediaError."""
    if sniff(path) == PICTURE:
        yield read_image(path), 0.0, True
        return
    info = probe(path)
    count = min(info.frame_count, max(1, round(SECONDS * info.frame_rate)))
    every = math.ceil(count / FRAMES)
    for frame in read_frames(path, end_s=None if count == info.frame_count else SECONDS):
        yield frame.image, frame.time_s, frame.index % every == 0


def _keys(secrets: Sequence[bytes]) -> list[Key]:
    own = (
        Key(chips_of(pattern_key(key), PRIVATE_BITS), 1 - PUBLIC_SHARE, LEAST_PRIVATE_SCORE)
        for key in secrets
    )
    return [Key(chips_of(PUBLIC_KEY, PUBLIC_BITS), PUBLIC_SHARE, LEAST_PUBLIC_SCORE), *own]


def _verdict(found: Sequence[Found | SoundFound]) -> Verdict:
    payloads = [one.payload for one in found]
    if any(payload is not None for payload in payloads[1:]):
        return "made with omokage"
    if payloads and payloads[0] is not None and payloads[0] >> 8 == PRODUCT:
        return "made with omokage"
    return "mark present, id unreadable" if any(one.is_present for one in found) else "no mark found"


def _marks(found: Sequence[Found | SoundFound]) -> tuple[PublicMark, PrivateMark | None, float]:
    """What the public key and the best of the others found, and the best z."""
    public, *own = found
    best = max(own, key=lambda one: (one.payload is not None, one.z)) if own else None
    return _public_mark(public), _private_mark(best) if best else None, max(one.z for one in found)


def _public_mark(found: Found | SoundFound) -> PublicMark:
    if found.payload is None:
        return PublicMark(None, None, found.score)
    return PublicMark(found.payload >> 8, found.payload & 0xFF, found.score)


def _private_mark(found: Found | SoundFound) -> PrivateMark:
    if found.payload is None:
        return PrivateMark(None, (), found.score)
    render_id = id_text(found.payload)
    return PrivateMark(render_id, renders_of(render_id), found.score)
