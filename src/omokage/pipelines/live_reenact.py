"""Live reenactment as Python has it: asked for consent first, and again while it runs. MAIN: `LiveReenactor`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from omokage.avatar.bundle import Avatar
from omokage.media.clip import Frame
from omokage.pipelines.reenact import ReenactConfig, background_of, permit_for
from omokage.render.realtime import LiveFrame, LivePipeline, LiveStatistics
from omokage.render.retarget import Rest
from omokage.tracking.tracker import OnlineTracker
from omokage.trust.consents import permit
from omokage.trust.guard import Guard
from omokage.trust.release import ReleaseConfig, check_label


class LiveReenactor:
    """Repeats what a person before a camera does, as long as the person shown agrees.

        for frame in LiveReenactor(Path("me.avatar")).run(camera):
            show(frame.portrait.image)

    config: how the movement is taken over, and for which purpose.  driving_rest, tracker: as `LivePipeline` has them.
    Whoever sends frames on says that they are generated and draws the label: `trust.release.release_live` does, with
    `release`. Raises BundleError, ConsentError when the person may not be shown, InputError for a label or a background
    that cannot be drawn.
    """

    def __init__(
        self,
        avatar: Path | Avatar,
        config: ReenactConfig | None = None,
        *,
        driving_rest: Rest | None = None,
        tracker: OnlineTracker | None = None,
    ) -> None:
        config = config or ReenactConfig()
        avatar = avatar if isinstance(avatar, Avatar) else Avatar.load(Path(avatar))
        self._permit = permit_for(avatar.provenance, config)
        label = config.label or avatar.provenance.label
        check_label(label, avatar.size, avatar.size)
        self.release = ReleaseConfig(
            label=label,
            avatar=avatar.provenance.recording_sha256,
            consent=self._permit.consent.id,
            purpose=self._permit.purpose,
        )
        self._pipeline = LivePipeline(
            avatar,
            driving_rest=driving_rest,
            controls=config.controls(),
            runtime=config.runtime,
            tracker=tracker,
            background=background_of(config.background, avatar.size),
        )

    def run(self, frames: Iterable[Frame], *, keep_all: bool = False) -> Iterator[LiveFrame]:
        """As `LivePipeline.run`. The consent is asked for now, when a frame leaves every 20 seconds, and at the end.

        Raises ConsentError when the consent was withdrawn or has ended; all threads of the run have ended then.
        """
        permitted = permit(self._permit.use, name=self._permit.name)
        with contextlib.closing(self._pipeline.run(frames, keep_all=keep_all)) as drawn:  # type: ignore[type-var]
            yield from Guard(permitted).frames(drawn)

    def statistics(self) -> LiveStatistics:
        """Of the last run."""
        return self._pipeline.statistics()
