"""`omokage speak --live`: a stream or a file is said while it is heard. MAIN: `speak_live`."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from omokage.avatar.bundle import Avatar
from omokage.avatar.paper.bundle import PaperAvatar
from omokage.config import ProgressCallback, ignore_progress
from omokage.errors import InputError, MediaError, OutputError
from omokage.media.audio import stream_audio
from omokage.media.clip import SoundFormat, SoundingFrame
from omokage.media.pcm import PcmStream, read_pcm
from omokage.pipelines.live_speaker import LiveSpeaker, SpeakerStatistics
from omokage.pipelines.reenact import check_output, performer_of
from omokage.pipelines.speak import SpeakConfig
from omokage.speaking.cues import read_cues
from omokage.speaking.driver import MOODS
from omokage.speaking.live import LiveConfig
from omokage.talking.conditions.speech import SAMPLE_RATE
from omokage.trust.release import Released, release_live

MOST_CHANNELS = 2  # of the video's sound; of more, the first two are kept
MICROPHONE_ROOM_S = 0.25
MANY_REPEATED = 0.1  # share of the frames from which on it is told


@dataclass(frozen=True)
class LiveSpeech:
    """What was made, how it went, and sentences on what was not as it should be."""

    released: Released
    statistics: SpeakerStatistics
    notes: tuple[str, ...]


def speak_live(
    avatar: Path | Avatar | PaperAvatar,
    *,
    source: Path | Callable[[int], bytes],
    output: Path | Callable[[bytes], int],
    raw: SoundFormat | None = None,
    is_microphone: bool = False,
    cues: Path | None = None,
    config: SpeakConfig | None = None,
    live: LiveConfig | None = None,
    on_ready: Callable[[LiveSpeaker], None] = lambda _: None,
    on_progress: ProgressCallback = ignore_progress,
) -> LiveSpeech:
    """Let an avatar say a voice while it comes, until it ends.

    source: a file, which is played; or gives the bytes of a stream as `media.pcm.read_pcm` wants them.  output: a
    video; or takes the bytes of one as `trust.release.release_live` has it.  raw: of a stream without a header.
    is_microphone: the stream never waits; what came before all was ready, and what there is no room for, is left out,
    and pauses are shortened where it fell behind.
    on_ready: gets the speaker, to interrupt or end it.
    Raises InputError and its kinds, OutputError, and what the taker of the bytes raises.
    """
    config = config or SpeakConfig()
    if config.driver == "personal":
        raise InputError("a live voice is followed in the general way only; leave --driver out, or --live")
    _check(output, config, [path for path in (source, cues) if isinstance(path, Path)])
    listed = read_cues(cues, MOODS) if cues is not None else ()
    voice = _Voice(source, raw or SoundFormat(SAMPLE_RATE, 1), is_microphone=is_microphone)
    performer = performer_of(avatar, config.drawing(), is_live=True)
    sound = voice.format()
    live = replace(live or LiveConfig(), sample_rate=sound.sample_rate, channels=sound.channels)
    if is_microphone:
        room_s = min(live.room_s, live.cushion_s + MICROPHONE_ROOM_S)
        live = replace(live, room_s=room_s, catches_up=True)
    is_transparent = config.background == "transparent"

    with LiveSpeaker(performer, config, live, cues=listed) as speaker:
        voice.say_to(speaker)
        on_ready(speaker)
        released = release_live(
            (
                SoundingFrame(
                    frame.portrait.rgba() if is_transparent else frame.portrait.image,
                    frame.samples[:, :MOST_CHANNELS],
                )
                for frame in speaker
            ),
            output,
            frame_rate=Fraction(config.frame_rate),
            sound=replace(sound, channels=min(sound.channels, MOST_CHANNELS)),
            config=performer.release(),
            on_progress=on_progress,
        )
    statistics = speaker.statistics()
    return LiveSpeech(released, statistics, tuple(_notes(statistics)))


class _Voice:
    """Reads a voice on a thread of its own, from the beginning: the avatar may be opened meanwhile."""

    def __init__(
        self, source: Path | Callable[[int], bytes], raw: SoundFormat, *, is_microphone: bool
    ) -> None:
        self._source, self._raw, self._is_microphone = source, raw, is_microphone
        self._opened, self._has_speaker = threading.Event(), threading.Event()
        self._format = raw
        self._error: BaseException | None = None
        self._speaker: LiveSpeaker | None = None
        threading.Thread(target=self._run, daemon=True).start()

    def format(self) -> SoundFormat:
        """Known when the first bytes have come. Raises MediaError when they are no sound."""
        self._opened.wait()
        if self._error is not None:
            raise self._error
        return self._format

    def say_to(self, speaker: LiveSpeaker) -> None:
        """Let it be said, to its end, or to that of the speaker."""
        self._speaker = speaker
        self._has_speaker.set()

    def _run(self) -> None:
        try:
            voice = _open(self._source, self._raw)
            self._format = voice.format
        except BaseException as error:
            self._error = error
            return
        finally:
            self._opened.set()
        try:
            self._say(voice.pieces)
        except BaseException as error:
            self._has_speaker.wait()
            assert self._speaker is not None
            self._speaker.fail(error)

    def _say(self, pieces: Iterator[NDArray[np.float32]]) -> None:
        for piece in pieces:
            if self._is_microphone and self._speaker is None:
                continue
            self._has_speaker.wait()
            assert self._speaker is not None
            taken = self._speaker.hear(piece, wait=not self._is_microphone)
            if taken < len(piece) and not self._is_microphone:
                return  # the speaker has ended
        self._has_speaker.wait()
        assert self._speaker is not None
        self._speaker.end()


def _open(source: Path | Callable[[int], bytes], raw: SoundFormat) -> PcmStream:
    if not isinstance(source, Path):
        return read_pcm(source, raw, name="the stream")
    pieces = stream_audio(source)
    first = next(pieces, None)
    if first is None:
        raise MediaError(f"{source} has no sound; give a file with a voice in it, such as a WAV, MP3 or MP4")
    sound = SoundFormat(first.audio.sample_rate, first.audio.samples.shape[1])
    return PcmStream(sound, (piece.audio.samples for piece in itertools.chain([first], pieces)))


def _check(output: Path | Callable[[bytes], int], config: SpeakConfig, inputs: list[Path]) -> None:
    """Raises OutputError when no such video can be written there."""
    if isinstance(output, Path):
        check_output(output, config.drawing(), inputs=inputs)
    elif config.background == "transparent":
        raise OutputError(
            "a stream has no transparent background; give a .webm file as output, or another background"
        )


def _notes(statistics: SpeakerStatistics) -> Iterator[str]:
    share = statistics.repeated / max(1, statistics.frames)
    if share >= MANY_REPEATED:
        yield (
            f"{100 * share:.0f} % of the frames show the picture before, since this machine was too slow; close other "
            "programs, or make the avatar with a smaller --size"
        )
