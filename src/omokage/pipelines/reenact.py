"""`omokage reenact`: an avatar repeats the movement of a driver. MAIN: `reenact`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ImageColor

from omokage.avatar.bundle import Avatar, Provenance, SpeechPart
from omokage.avatar.conditioning import AvatarState
from omokage.avatar.container import is_trained_here
from omokage.avatar.paper.bundle import PaperAvatar
from omokage.capture.driver import DriverWatch
from omokage.config import Config, ProgressCallback, ignore_progress
from omokage.errors import InputError
from omokage.media.audio import read_audio
from omokage.media.clip import Audio
from omokage.media.decode import probe, read_frames
from omokage.media.image import is_still_image, read_image
from omokage.pipelines.recording import MAX_SIDE_PX, tracked
from omokage.render.detail import rest_of, retarget_detail
from omokage.render.paper_renderer import PaperRenderer, person_of
from omokage.render.readback import ReadBack
from omokage.render.realtime import network_threads, state_of
from omokage.render.renderer import Portrait, Renderer, fit_background
from omokage.render.retarget import Controls, Coverage, Motion, Rest, retarget
from omokage.threads import one_ahead, one_blas_thread
from omokage.tracking.arkit import read_arkit_csv
from omokage.tracking.face_track import FaceTrack
from omokage.trust.consent import Use
from omokage.trust.consents import Permit, permit
from omokage.trust.guard import Guard
from omokage.trust.release import (
    ALPHA_SUFFIXES,
    CLIP_SUFFIXES,
    ReleaseConfig,
    Released,
    check_label,
    check_writable,
    release_clip,
)


@dataclass(frozen=True)
class ReenactConfig(Config):
    """How the movement is taken over; the first five are `Controls`.

    background: 'own', 'transparent', a color such as '#204060', or the path of a picture.
    label: visible text; None takes the avatar's own.  runtime: 'auto', 'torch', of compact avatars 'onnxruntime' or
    'openvino' (`render.renderer`), of the paper's networks 'cuda-graph' or 'compiled' (`render.paper_runtime`).
    purpose: what it is for, of those that the person agreed to; None where there is one.
    """

    expression_strength: float = 1.0
    pose_strength: float = 1.0
    mouth_only: bool = False
    gaze: Literal["driver", "camera"] = "driver"
    blink: float = 1.0
    background: str = "own"
    label: str | None = None
    runtime: str = "auto"
    purpose: str | None = None

    def controls(self) -> Controls:
        return Controls(
            expression_strength=self.expression_strength,
            pose_strength=self.pose_strength,
            mouth_only=self.mouth_only,
            gaze=self.gaze,
            blink=self.blink,
        )


@dataclass(frozen=True)
class Reenactment:
    """What was made, and sentences on a driver with faults or beyond what the recording has shown."""

    released: Released
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Driver:
    """A driver's motion, its constant frame rate and its sound; `warnings`: sentences on what may spoil it."""

    track: FaceTrack
    frame_rate: Fraction
    audio: Audio | None
    warnings: tuple[str, ...] = ()


@one_blas_thread()
def reenact(
    avatar: Path | Avatar | PaperAvatar,
    driver: Path,
    *,
    output: Path,
    config: ReenactConfig | None = None,
    on_progress: ProgressCallback = ignore_progress,
) -> Reenactment:
    """Track the driver, carry its motion over to the avatar, draw, and release.

    `driver`: a video, a `.track` file or the `.csv` of a phone capture app. A transparent background needs a `.webm`
    output. Raises InputError and its kinds, OutputError.
    """
    config = config or ReenactConfig()
    driver, output = Path(driver), Path(output)
    check_output(output, config, inputs=[driver])
    performer = performer_of(avatar, config)
    on_progress = Guard(performer.permit).progress(on_progress)
    driving = open_driver(driver, on_progress=on_progress)
    return perform(performer, driving, output=output, config=config, on_progress=on_progress)


def check_output(output: Path, config: ReenactConfig, *, inputs: Sequence[Path]) -> None:
    """Raises OutputError when no video of that kind can be written there."""
    suffixes = ALPHA_SUFFIXES if config.background == "transparent" else CLIP_SUFFIXES
    check_writable(output, suffixes, inputs=inputs)


def perform(
    performer: Performer,
    driving: Driver,
    *,
    output: Path,
    config: ReenactConfig,
    driving_rest: Rest | None = None,
    reads_back: bool = True,
    on_progress: ProgressCallback = ignore_progress,
) -> Reenactment:
    """Carry a motion over to an avatar, draw, and release.

    driving_rest: by default found in the motion.  reads_back: what the landmark network misreads in a picture is
    corrected before it is drawn for good; it takes a third of the time, and a motion that nobody was seen to make does
    not need it.
    """
    controls, rest = config.controls(), performer.rest
    driving_rest = driving_rest or rest.of_driver(driving.track)
    moved = retarget(
        driving.track,
        source_rest=rest,
        coverage=Coverage.of(performer.track),
        controls=controls,
        driving_rest=driving_rest,
    )
    detail = retarget_detail(driving.track, source_rest=rest, controls=controls, driving_rest=driving_rest)
    states: Iterable[AvatarState] = motion_states(moved.motion, detail)
    if reads_back:
        states = one_ahead(map(performer.corrected, states))
    released = release_clip(
        _pictures(performer.render, states, is_transparent=config.background == "transparent"),
        output,
        frame_rate=driving.frame_rate,
        audio=driving.audio,
        config=performer.release(),
        frame_count=len(moved.motion),
        on_progress=on_progress,
    )
    return Reenactment(released, performer.notes + driving.warnings + moved.warnings)


def open_driver(path: Path, *, on_progress: ProgressCallback = ignore_progress) -> Driver:
    """Read or track a driver. Raises InputError for a still picture, MediaError, NoFaceError."""
    if path.suffix.lower() == ".csv":
        return _at_constant_rate(read_arkit_csv(path))
    if path.suffix.lower() == ".track":
        return _at_constant_rate(FaceTrack.load(path))
    if is_still_image(path):
        raise InputError(
            f"{path} is a still picture and has no movement; give a video, a .track or a .csv as driver"
        )
    info = probe(path)
    watch = DriverWatch(info.frame_count)
    track = tracked(info, watch.watch(read_frames(path, max_side=MAX_SIDE_PX)), on_progress)
    return Driver(track, info.frame_rate, read_audio(path), watch.warnings())


def motion_states(motion: Motion, details: Iterable[NDArray[np.float64]]) -> Iterator[AvatarState]:
    """Frames of a motion, each with its skin detail (468, 3), as the renderer takes them."""
    for row, detail in enumerate(details):
        yield state_of(motion, row, detail)


@dataclass(frozen=True)
class Performer:
    """Who is driven, in whichever networks. render: draws a state.  stages: the same in steps for different cores.
    corrected: the state to draw for one that is told.  track, rest: of their recording.  recording: its SHA-256.
    permit: why they may be shown.  speech: how they speak, where that was learned.
    notes: sentences on how they are drawn, where it is not as asked."""

    size: int
    label: str | None
    track: FaceTrack
    rest: Rest
    render: Callable[[AvatarState], Portrait]
    stages: tuple[Callable[[Any], Any], ...]
    corrected: Callable[[AvatarState], AvatarState]
    recording: str = ""
    permit: Permit | None = None
    speech: SpeechPart | None = None
    notes: tuple[str, ...] = ()

    def release(self) -> ReleaseConfig:
        """What leaves of them says this."""
        return ReleaseConfig(
            label=self.label,
            avatar=self.recording,
            consent=self.permit.consent.id if self.permit else "",
            purpose=self.permit.purpose if self.permit else "",
        )


def performer_of(
    avatar: Path | Avatar | PaperAvatar, config: ReenactConfig, *, is_live: bool = False
) -> Performer:
    """Open an avatar of any kind that may be shown.

    is_live: frames are drawn while they are wanted, and nothing is corrected. Raises BundleError, ConsentError when it
    may not, and InputError for what its kind cannot do.
    """
    if not isinstance(avatar, Avatar | PaperAvatar):
        path = Path(avatar)
        # An imported avatar is refused by the reader of compact ones, in its words.
        avatar = PaperAvatar.load(path) if is_trained_here(path) else Avatar.load(path)
    if isinstance(avatar, PaperAvatar):
        return _paper_performer(avatar, config)
    permitted = permit_for(avatar.provenance, config)
    label = config.label or avatar.provenance.label
    check_label(label, avatar.size, avatar.size)
    background = background_of(config.background, avatar.size)
    threads = network_threads(avatar.size) if is_live else None
    renderer = Renderer(avatar, runtime=config.runtime, background=background, threads=threads)
    # What the landmark network misreads in a picture is corrected before the picture is drawn for good.
    corrected = _as_told if is_live else ReadBack(renderer).corrected
    made_from = avatar.provenance.recording_sha256
    stages = renderer.stages
    return Performer(
        avatar.size,
        label,
        avatar.track,
        rest_of(avatar),
        renderer.render,
        stages,
        corrected,
        made_from,
        permitted,
        avatar.speech,
    )


def permit_for(made: Provenance, config: ReenactConfig) -> Permit:
    """What showing a person of this recording rests on. Raises ConsentError."""
    return permit(Use(made.recording_sha256, config.purpose), name=made.recording_name)


def _paper_performer(avatar: PaperAvatar, config: ReenactConfig) -> Performer:
    person = person_of(avatar)
    if config.background != "own":
        raise InputError(
            "an avatar at the paper's scale draws person and background together; use --background own, or an avatar "
            "of the compact preset"
        )
    made = avatar.origin if isinstance(avatar.origin, Provenance) else None
    permitted = permit_for(made, config) if made else None
    label = config.label or (made.label if made else None)
    check_label(label, avatar.size, avatar.size)
    rest = replace(Rest.of(person.track), skin=person.skin)
    notes: list[str] = []
    renderer = PaperRenderer(avatar, runtime=config.runtime, say=notes.append)
    # A picture takes too long to be drawn twice: the state is drawn as it is told.
    return Performer(
        avatar.size,
        label,
        person.track,
        rest,
        renderer.render,
        (renderer.render,),
        _as_told,
        made.recording_sha256 if made else "",
        permitted,
        notes=tuple(notes),
    )


def _as_told(state: AvatarState) -> AvatarState:
    return state


def _pictures(
    render: Callable[[AvatarState], Portrait],
    states: Iterable[AvatarState],
    *,
    is_transparent: bool,
) -> Iterator[NDArray[np.uint8]]:
    for state in states:
        portrait = render(state)
        yield portrait.rgba() if is_transparent else portrait.image


def background_of(wish: str, size: int) -> NDArray[np.uint8] | None:
    """The picture to put behind the person, uint8 (S, S, 3); None keeps the recording's own."""
    if wish in ("own", "transparent"):
        return None
    if wish.startswith("#"):
        try:
            color = ImageColor.getrgb(wish)[:3]
        except ValueError as error:
            raise InputError(f"'{wish}' is not a color; write it as #rrggbb") from error
        return np.broadcast_to(np.array(color, dtype=np.uint8), (size, size, 3)).copy()
    return fit_background(read_image(Path(wish)), size)


def _at_constant_rate(track: FaceTrack) -> Driver:
    """A stored track at its own median rate; rows that are missing are filled with the nearest in time."""
    step = float(np.median(np.diff(track.time_s))) if len(track) > 1 else 0.0
    if step <= 0:
        raise InputError(
            "the driver has no movement in time; give one with at least two frames at different times"
        )
    times = np.arange(track.time_s[0], track.time_s[-1] + step / 2, step)
    rows = np.searchsorted((track.time_s[1:] + track.time_s[:-1]) / 2, times)
    return Driver(track.select(rows), Fraction(1 / step).limit_denominator(1001), None)
