"""A synthetic person with an untrained avatar, to measure speed with: it costs what a real one costs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import torch

import omokage
from omokage.avatar.bundle import Avatar, Provenance
from omokage.avatar.conditioning import Conditioner
from omokage.avatar.config import preset_for
from omokage.avatar.generator import Generator
from omokage.avatar.registration import ExplicitAvatar, paint
from omokage.avatar.samples import avatar_state, choose_crop, cut_out
from omokage.avatar.sheet import Pose, Sheet
from omokage.avatar.texture import Sample
from omokage.media.clip import Frame
from omokage.tracking.detail import mean_detail
from omokage.tracking.face_track import FaceTrack
from omokage.tracking.morphable import MorphableModel
from omokage.tracking.synthetic import SyntheticSubject
from omokage.trust.consent import Medium, Terms, new_consent
from omokage.trust.consents import keep
from omokage.trust.keys import signing_key

CLIP_SIDE_PX = 512


@dataclass(frozen=True)
class StandIn:
    """frames: of a clip of 512 x 512.  track: the true motion in them.  samples: the same as training takes them."""

    frames: tuple[Frame, ...]
    track: FaceTrack
    samples: tuple[Sample, ...]
    explicit: ExplicitAvatar
    avatar: Avatar


def stand_in(size: int, *, frame_count: int = 12, clip_side: int = CLIP_SIDE_PX, seed: int = 0) -> StandIn:
    """Make one. The network's last layers get small random weights, so that nothing in it is zero."""
    config = preset_for(size)
    person = SyntheticSubject(seed)
    track = person.performance(frame_count / 25, size=clip_side)
    frames = tuple(person.render_clip(track))
    crop = choose_crop(track)
    rest = Pose(track.rotation[0], track.translation[0], track.sway[0].astype(np.float64))
    sheet = Sheet.build(person.model, person.subject, rest=rest, camera=track.camera, crop=crop)
    conditioner = Conditioner(MorphableModel.load(), person.subject, sheet, crop, config)
    images = [cut_out(frame.image, crop, size) for frame in frames]
    samples = tuple(
        Sample(image, np.full(image.shape[:2], 255, dtype=np.uint8), avatar_state(track, row))
        for row, image in enumerate(images)
    )
    explicit = paint(conditioner, samples, samples[:4], images[0])
    avatar = Avatar(
        generator=untrained(explicit, seed),
        conditioner=explicit.conditioner,
        plate=explicit.plate,
        track=track,
        skin=mean_detail(track),
        provenance=Provenance(
            recording_sha256="",
            recording_name="synthetic",
            recording_path="",
            frame_rate="25",
            photo_only=False,
            label=None,
            minutes=0.0,
            steps=0,
            omokage=omokage.__version__,
        ),
    )
    return StandIn(frames, track, samples, explicit, avatar)


def agree_for_nobody(medium: Path | Medium) -> None:
    """Record that a drawn head may be used for research: no person is shown. For benchmarks."""
    today = date.today()
    terms = Terms(
        kind="nobody",
        purposes=("research",),
        start=today.isoformat(),
        end=(today + timedelta(days=365)).isoformat(),
    )
    keep(new_consent([medium], terms, now=datetime.now(UTC), key=signing_key()))


def untrained(explicit: ExplicitAvatar, seed: int = 0) -> Generator:
    """A generator with the explicit texture and small random weights where training starts from zero."""
    random = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of all other layers
        generator = explicit.generator()
    with torch.no_grad():
        for name, values in generator.named_parameters():
            if name.startswith(("head", "offset", "features")) or "film" in name:
                # A larger kernel sums up more of them.
                scale = 0.03 / values.shape[-1] if name in ("head.weight", "offset.weight") else 0.01
                values.copy_(scale * torch.randn(values.shape, generator=random))
    generator.requires_grad_(False)
    return generator.eval()
