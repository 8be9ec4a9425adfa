"""An avatar as `omokage evaluate` sees it, in whichever networks. MAIN: `Candidate.of`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from omokage.avatar.bundle import Avatar, Provenance
from omokage.avatar.conditioning import AvatarState
from omokage.avatar.config import AvatarConfig, nearest_preset
from omokage.avatar.container import is_trained_here
from omokage.avatar.paper.bundle import PaperAvatar
from omokage.avatar.sheet import Crop
from omokage.avatar.texture import Sample
from omokage.config import ProgressCallback, ignore_progress
from omokage.media.clip import Frame, Image
from omokage.pipelines.paper_frames import MAX_CUT_SIDE_PX, cut_window, window_crop
from omokage.pipelines.recording import MAX_SIDE_PX, Recording
from omokage.render.paper_renderer import PaperRenderer, person_of
from omokage.render.readback import ReadBack
from omokage.render.renderer import Renderer
from omokage.tracking.face_track import Subject

# At 1024 pixels a frame takes 3 MB, and once more with its matte: 500 of them, and what five methods make of those
# held out, fit into a machine that can train such an avatar, which itself has learned from more of them.
PAPER_FRAMES, PAPER_HELD_OUT = 500, 100


@dataclass(frozen=True)
class View:
    """What of a recording an avatar shows.

    crop: of the recording, in its tracked pixels.  cut: a frame's picture, None for that crop of it.
    max_side: frames are decoded at this many pixels at most.
    frames, held_out: that are used at most, None for as many as a compact avatar of that size keeps.
    """

    crop: Crop
    cut: Callable[[Frame], Image] | None = None
    max_side: int = MAX_SIDE_PX
    frames: int | None = None
    held_out: int | None = None


@dataclass(frozen=True)
class Candidate:
    """Who is measured.

    size: of the pictures, px.  made: how.  subject: the face that the recording was fitted with.
    weights: how many numbers the network has.  explicit: sizes of the composition without network beside it.
    device: where it is drawn, and where a network beside it is trained.  driven: what it is told, for people.
    draw: the pictures of one film's states, uint8 (T, S, S, 3), as `reenact` draws them.
    """

    size: int
    made: Provenance
    subject: Subject
    weights: int
    explicit: AvatarConfig
    view: View
    device: str
    driven: str
    draw: Callable[[Sequence[AvatarState]], NDArray[np.uint8]]

    @classmethod
    def load(cls, path: Path) -> Candidate:
        """Open an avatar file of any kind. Raises BundleError, also for one that cannot be measured."""
        # An imported avatar is refused by the reader of compact ones, in its words.
        return cls.of(PaperAvatar.load(path) if is_trained_here(path) else Avatar.load(path))

    @classmethod
    def of(cls, avatar: Avatar | PaperAvatar) -> Candidate:
        """Raises BundleError for an avatar of face meshes that another program drew."""
        return _compact(avatar) if isinstance(avatar, Avatar) else _paper(avatar)

    def open(self, video: Path, *, on_progress: ProgressCallback = ignore_progress) -> Recording:
        """The recording, tracked. Raises MediaError, NoFaceError."""
        opened = Recording.open(
            video,
            size=self.size,
            cap=self.view.frames,
            held_out=self.view.held_out,
            on_progress=on_progress,
        )
        return replace(opened, crop=self.view.crop)

    def samples(
        self, recording: Recording, *, on_progress: ProgressCallback = ignore_progress
    ) -> tuple[Sequence[Sample], Sequence[Sample]]:
        """What the avatar shows of the recording: frames for training and held-out ones."""
        return recording.samples(
            self.size, cut=self.view.cut, max_side=self.view.max_side, on_progress=on_progress
        )


def _compact(avatar: Avatar) -> Candidate:
    def draw(states: Sequence[AvatarState]) -> NDArray[np.uint8]:
        renderer = Renderer(avatar, runtime="torch")
        read_back = ReadBack(renderer)
        return np.stack([renderer.render(read_back.corrected(state)).image for state in states])

    return Candidate(
        size=avatar.size,
        made=avatar.provenance,
        subject=avatar.conditioner.subject,
        weights=sum(p.numel() for p in avatar.generator.weights()),
        explicit=avatar.config,
        view=View(avatar.conditioner.crop),
        device="cpu",
        driven="head pose, expression, gaze, hair and shoulders, lips and lids; its own picture is read back twice and "
        "corrected, as reenactment does",
        draw=draw,
    )


def _paper(avatar: PaperAvatar) -> Candidate:
    drawing, made = person_of(avatar).drawing, avatar.origin
    assert isinstance(made, Provenance)  # who was tracked here was trained here

    def draw(states: Sequence[AvatarState]) -> NDArray[np.uint8]:
        renderer = PaperRenderer(avatar)
        return np.stack([renderer.render(state).image for state in states])

    return Candidate(
        size=avatar.size,
        made=made,
        subject=drawing.subject,
        weights=sum(p.numel() for p in avatar.generator.parameters()),
        explicit=nearest_preset(avatar.size),
        view=View(
            crop=window_crop(drawing.crop),
            cut=partial(cut_window, drawing=drawing),
            max_side=MAX_CUT_SIDE_PX,
            frames=PAPER_FRAMES,
            held_out=PAPER_HELD_OUT,
        ),
        device="cuda" if torch.cuda.is_available() else "cpu",
        driven="head pose, expression, gaze, lips and lids, drawn as a face mesh",
        draw=draw,
    )
