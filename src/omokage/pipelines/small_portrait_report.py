"""What a small model is measured by: chained windows of speech that it never heard, beside controls, and the report."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Self

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import omokage
from omokage.config import Progress, ProgressCallback
from omokage.errors import InputError
from omokage.evaluate.portrait_video import TalkingEvaluation, evaluate_takes, render_talking_report
from omokage.evaluate.talking_scores import Question, Take
from omokage.media.clip import Audio
from omokage.metrics.image import Frames, psnr
from omokage.metrics.talking import envelope_db, mouth_opening
from omokage.pipelines.subject import Recorded, read_take
from omokage.talking.conditions.identity import ThumbnailIdentity
from omokage.talking.conditions.portrait import MOTION_FRAMES, face_rectangle
from omokage.talking.conditions.speech import FRAME_RATE, SAMPLE_RATE, SAMPLES_PER_FRAME
from omokage.talking.config import SamplerConfig
from omokage.talking.model import Machine, TalkingModel
from omokage.talking.placement import resident
from omokage.talking.prepare import Portrait, prepare_likeness, prepare_prompt, prepare_speech
from omokage.talking.rollout import Scene, rollout
from omokage.talking.training.autoencoder import to_frames, to_video
from omokage.trust.release import ReleaseConfig, release_clip, release_text

HELD_OUT, MOST_HELD_OUT = 0.2, 0.4  # of the clip
PIECE_S = 0.6  # of speech, in the shuffled control
SHIFT_S = 1.0
SHOWN_PX = 288  # a side of the comparison clip's pictures


@dataclass(frozen=True)
class Parts:
    """learned: the first frames, trained on.  held_out: the last ones, never; `repeated` until they fill the windows.
    portrait: the frame of the learned ones that videos begin from."""

    learned: Recorded
    held_out: Recorded
    repeated: Recorded
    portrait: int

    @classmethod
    def cut(cls, recorded: Recorded, window_frames: int, chained: int) -> Self:
        """Hold out a fifth, or as much as `chained` windows show, if that is no more than two fifths.

        The portrait is the frame whose mouth is closed most. Raises InputError for a clip too short for this.
        """
        new = window_frames - MOTION_FRAMES
        total, wanted = len(recorded), chained * new
        held = min(max(round(HELD_OUT * total), wanted), round(MOST_HELD_OUT * total))
        if total - held < 2 * window_frames or held < new:
            raise InputError(
                f"the clip has {total} frames at {FRAME_RATE} a second and at least {4 * window_frames} are needed; "
                "use a longer recording"
            )
        learned, held_out = recorded.part(0, total - held), recorded.part(total - held, total)
        opening = mouth_opening(learned.landmarks)
        return cls(learned, held_out, held_out.repeated(wanted), int(np.nanargmin(opening)))


@dataclass(frozen=True)
class Measured:
    """takes: videos of the held-out speech, one a seed.  controls: of other speech, by name.  ceilings: the recording
    as the detector sees it at this size, and as the autoencoder gives it back.  psnr: of the latter, dB."""

    takes: tuple[Take, ...]
    controls: Mapping[str, tuple[Take, ...]]
    ceilings: Mapping[str, tuple[Take, ...]]
    psnr: float


class WindowsInMemory:
    """Finished windows of one video."""

    def __init__(self) -> None:
        self._latents: dict[int, Tensor] = {}

    def load(self, index: int) -> Tensor | None:
        return self._latents.get(index)

    def save(self, index: int, latents: Tensor) -> None:
        self._latents[index] = latents


def measure_small_portrait(
    folder: Path,
    parts: Parts,
    sampler: SamplerConfig,
    seeds: tuple[int, ...],
    on_progress: ProgressCallback,
) -> Measured:
    """Let the model in `folder` say the held-out speech for every seed, and the controls' for the first one, with the
    same portrait."""
    model = TalkingModel.open(folder, Machine(torch.device("cpu"), torch.float32))
    spoken = {"generated": parts.repeated.voice, **other_speech(parts.repeated.voice)}
    total, done = len(spoken) + len(seeds) - 1, 0
    takes: dict[str, tuple[Take, ...]] = {}
    for name, voice in spoken.items():
        made = []
        for seed in seeds if name == "generated" else seeds[:1]:
            on_progress(Progress("measuring", done, total, name))
            made.append(speak(model, parts, voice, sampler, seed))
            done += 1
        takes[name] = tuple(made)
    on_progress(Progress("measuring", total, total))
    generated = takes.pop("generated")
    decoded = through_autoencoder(model, parts.repeated.frames)
    ceilings = {
        "recording, read at this size": (read_take(parts.repeated.frames, ()),),
        "recording through the autoencoder": (read_take(decoded, ()),),
    }
    return Measured(generated, takes, ceilings, float(psnr(parts.repeated.frames, decoded).mean()))


def other_speech(voice: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """The controls: this voice in pieces in another order, none, and a second early and late (the end comes around)."""
    piece, shift = round(PIECE_S * SAMPLE_RATE), round(SHIFT_S * SAMPLE_RATE)
    count = -(-len(voice) // piece)
    circle, order = np.random.default_rng(0).permutation(count), np.zeros(count, dtype=np.int64)
    order[circle] = np.roll(circle, 1)  # each takes the next one's place, none stays
    return {
        "shuffled speech": np.concatenate([voice[row * piece : (row + 1) * piece] for row in order]),
        "silence": np.zeros_like(voice),
        "speech 1 s early": np.roll(voice, -shift),
        "speech 1 s late": np.roll(voice, shift),
    }


def speak(
    model: TalkingModel, parts: Parts, voice: NDArray[np.float32], sampler: SamplerConfig, seed: int
) -> Take:
    """One video: portrait, voice and seed through the product's own windows."""
    picture, points = parts.learned.frames[parts.portrait], parts.learned.landmarks[parts.portrait]
    portrait = Portrait(picture, face_rectangle(points[:, :2], *picture.shape[:2]), points)
    scene = Scene.set_up(
        model,
        prepare_likeness(model, portrait, ThumbnailIdentity(), seed, resident()),
        prepare_prompt(model, "", lambda _: None),
        prepare_speech(model, voice, lambda _: None),
        sampler,
        seed,
        resident(),
    )
    frames = np.stack(list(rollout(scene, WindowsInMemory(), lambda *_: None)))
    new = model.sizes.transformer.frames - MOTION_FRAMES
    return read_take(frames, tuple(range(new, len(frames), new)))


@torch.no_grad()
def through_autoencoder(model: TalkingModel, frames: Frames) -> Frames:
    """What is left of frames (T, S, S, 3) after encoding and decoding, window by window."""
    vae, size = model.vae(resident()), model.sizes.transformer.frames
    parts = []
    for start in range(0, len(frames), size):
        window = frames[start : start + size]
        padded = np.concatenate([window, np.repeat(window[-1:], size - len(window), axis=0)])
        video = torch.cat(list(vae.decode(vae.encode(to_video(padded)[None]))), dim=1)[0]
        parts.append(to_frames(video)[: len(window)])
    return np.concatenate(parts)


def question_of(parts: Parts) -> Question:
    """What the videos are held against: the true frames of the same speech."""
    loudness = envelope_db(parts.repeated.voice, SAMPLES_PER_FRAME, len(parts.repeated))
    shown = slice(parts.portrait, parts.portrait + 1)
    portrait = Take(parts.learned.frames[shown], parts.learned.landmarks[shown])
    return Question(float(FRAME_RATE), parts.repeated.voice, loudness, portrait, parts.repeated.take())


def report_small_portrait(
    folder: Path, clip: str, parts: Parts, caution: str, measured: Measured, timing: Mapping[str, float]
) -> TalkingEvaluation:
    """Score everything, and release report.html, report.json and held-out.mp4."""
    evaluation = evaluate_takes(
        clip,
        question_of(parts),
        measured.takes,
        measured.controls,
        measured.ceilings,
        caution=caution,
        notes=_notes(parts, measured, timing),
    )
    strips = {"recording": parts.repeated.frames, "generated": measured.takes[0].frames}
    strips |= {name: takes[0].frames for name, takes in measured.controls.items()}
    release_text(render_talking_report(evaluation, strips), folder / "report.html")
    release_text(json.dumps(evaluation.to_json(), indent=1), folder / "report.json")
    release_clip(
        _side_by_side(parts.repeated.frames, measured.takes[0].frames),
        folder / "held-out.mp4",
        frame_rate=Fraction(FRAME_RATE),
        audio=Audio(parts.repeated.voice[:, None], SAMPLE_RATE),
        config=ReleaseConfig(label=f"right: {caution}", title=caution),
    )
    return evaluation


def _side_by_side(truth: Frames, made: Frames) -> Iterator[NDArray[np.uint8]]:
    scale = max(1, round(SHOWN_PX / truth.shape[1]))
    for pair in zip(truth, made, strict=True):
        row = cv2.resize(
            np.concatenate(pair, axis=1), None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC
        )
        yield np.asarray(row, dtype=np.uint8)


def _notes(parts: Parts, measured: Measured, timing: Mapping[str, float]) -> tuple[str, ...]:
    """Facts about the run, in words."""
    learned, held = len(parts.learned) / FRAME_RATE, len(parts.held_out) / FRAME_RATE
    times = len(parts.repeated) / len(parts.held_out)
    again = "" if times == 1 else f", said {times:.2g} times in a row"
    spent = ", ".join(f"{name} {seconds / 60:.1f}" for name, seconds in timing.items())
    return (
        f"Everything was learned from the first {learned:.1f} s of this clip; the last {held:.1f} s were never "
        f"seen or heard{again}.",
        f"The autoencoder gives held-out frames back with {measured.psnr:.1f} dB; rows named 'recording' show what "
        "it, and the landmark network at this size, leave of the true lips.",
        f"Means over {len(measured.takes)} seeds; the controls are of one.",
        f"Minutes: {spent}; {torch.get_num_threads()} threads, PyTorch {torch.__version__}, omokage "
        f"{omokage.__version__}, {platform.machine()}.",
    )
