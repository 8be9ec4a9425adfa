"""How soon and how steadily an avatar says what it hears: the live way from a sound to pictures with that sound.

    python benchmarks/speaking_live.py --size 256 --seconds 90 --output benchmarks/results/speaking-live.json

The voice is synthetic and comes in pieces of 20 ms at the speed of speech; frames are encoded as a stream while they
are made. The avatar is an untrained network of the real size, which costs what a trained one costs; --avatar takes a
trained one. Drift over ten minutes is counted with a clock that does not wait, all else is measured in real time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from live import Lost, named, wait_for_quiet
from numpy.typing import NDArray

from omokage.avatar.bundle import Avatar
from omokage.media.clip import SoundFormat, SoundingFrame
from omokage.pipelines.bench import machine
from omokage.pipelines.live_speaker import Clock, LiveSpeaker, SpokenFrame
from omokage.pipelines.reenact import Performer, performer_of
from omokage.pipelines.speak import SpeakConfig
from omokage.pipelines.speech_track import resampled
from omokage.pipelines.stand_in import agree_for_nobody, stand_in
from omokage.render.retarget import JAW
from omokage.speaking.live import LiveConfig, look_ahead_frames
from omokage.speaking.voices import speak_text
from omokage.trust.consent import Medium
from omokage.trust.release import release_live

RATE, PIECE, FRAMES_PER_S = 16_000, 320, 25
TEXT = (
    "Good morning, and welcome to our booth. My mother brings a big blue umbrella, and happy people move to bigger "
    "towns, far away from the sea. Please ask me whatever you want to know about our work."
)
OPEN, SHUT = 0.1, 0.03  # jaw
UTTERANCES, INTERRUPTIONS = 12, 12
TARGETS = {
    "first_frame_ms": 400,
    "fps": FRAMES_PER_S,
    "interruption_ms": 200,
    "drift_ms_after_10_minutes": 40,
}


class Talker:
    """Says pieces in real time, on a thread of its own."""

    def __init__(self, speaker: LiveSpeaker, voice: NDArray[np.float32]) -> None:
        self._speaker, self._voice = speaker, voice
        self.begun_s = 0.0

    def say(self, seconds: float) -> None:
        samples = np.resize(self._voice, int(seconds * RATE))
        begin = time.monotonic()
        for start in range(0, len(samples), PIECE):
            # A piece is there when it was spoken.
            time.sleep(max(0.0, begin + (start + PIECE) / RATE - time.monotonic()))
            if start == 0:
                self.begun_s = time.monotonic()
            self._speaker.hear(samples[start : start + PIECE])


def run(
    performer: Performer,
    voice: NDArray[np.float32],
    script: Callable[[LiveSpeaker, Talker], None],
    watch: Callable[[SpokenFrame], None] = lambda _: None,
) -> tuple[LiveSpeaker, list[SpokenFrame]]:
    """A speaker whose voice follows a script, encoded as a stream. Frames come back without their pictures."""
    frames: list[SpokenFrame] = []
    with LiveSpeaker(performer, live=LiveConfig(catches_up=True)) as speaker:
        thread = threading.Thread(
            target=lambda: (script(speaker, Talker(speaker, voice)), speaker.end()), daemon=True
        )

        def passed() -> Iterator[SoundingFrame]:
            thread.start()
            for frame in speaker:
                watch(frame)
                frames.append(replace(frame, portrait=None))  # type: ignore[arg-type]
                yield SoundingFrame(frame.portrait.image, frame.samples)

        release_live(passed(), len, frame_rate=Fraction(FRAMES_PER_S), sound=SoundFormat(RATE, 1))
    return speaker, frames


def first_frames(performer: Performer, voice: NDArray[np.float32]) -> dict[str, Any]:
    """From the first piece of an utterance, after a pause, to the frame that begins to say it."""
    latencies: list[float] = []
    state = {"silent_frames": 0}

    def watch(frame: SpokenFrame) -> None:
        if frame.latency_ms is None:
            state["silent_frames"] += 1
            return
        # A voice that was late on a busy machine is no new utterance.
        if state["silent_frames"] > FRAMES_PER_S // 2:
            latencies.append(frame.latency_ms)
        state["silent_frames"] = 0

    def script(_: LiveSpeaker, talker: Talker) -> None:
        rng = np.random.default_rng(0)
        for _ in range(UTTERANCES):
            time.sleep(1.0 + float(rng.uniform(0, 0.04)))
            talker.say(1.0)
        time.sleep(1.0)

    run(performer, voice, script, watch)
    return spread(latencies) | {"utterances": len(latencies)}


def steady(performer: Performer, voice: NDArray[np.float32], seconds: float) -> dict[str, Any]:
    """A voice that goes on: frames a second, end to end, pictures that were dropped, how far pictures lag."""
    left_s: list[float] = []
    speaker, frames = run(
        performer,
        voice,
        lambda _, talker: talker.say(seconds),
        lambda _: left_s.append(time.monotonic()),
    )
    latencies = [frame.latency_ms for frame in frames if frame.latency_ms is not None]
    lag = np.array([frame.index - frame.picture_index for frame in frames]) * 1000 / FRAMES_PER_S
    gaps = np.diff(left_s) * 1000
    samples = sum(len(frame.samples) for frame in frames)
    said = np.concatenate([frame.samples for frame in frames])[:, 0]
    stages = [round(1000 * float(np.median(times)), 1) for times in speaker.stage_times]
    skipped_s = speaker.statistics().skipped_s
    return {
        "seconds": seconds,
        "fps": round((len(left_s) - 1) / (left_s[-1] - left_s[0]), 3),
        "pictures_per_second": round(
            sum(not frame.is_repeated for frame in frames) / (left_s[-1] - left_s[0]), 2
        ),
        "repeated_percent": round(100 * float(np.mean(lag > 0)), 2),
        "latency_ms": spread(latencies),
        "gap_between_frames_p95_ms": round(float(np.percentile(gaps, 95)), 1),
        "picture_behind_sound_p95_ms": round(float(np.percentile(lag, 95)), 1),
        "picture_behind_sound_max_ms": round(float(lag.max()), 1),
        "sound_against_picture_at_the_end_ms": round(
            1000 * abs(samples / RATE - len(frames) / FRAMES_PER_S), 3
        ),
        "samples_lost": int(seconds * RATE) - int(np.count_nonzero(_spoken(said))) - round(skipped_s * RATE),
        "pauses_shortened_s": round(skipped_s, 3),
        "latency_last_tenth_ms": spread(latencies[-len(latencies) // 10 :]),
        "stalls": speaker.statistics().stalls,
        "stages_ms": dict(zip(("carry, draw", "network", "compose"), stages, strict=False)),
    }


def _spoken(said: NDArray[np.float32]) -> NDArray[np.bool_]:
    """What was heard, which is nowhere exactly silent in this benchmark (`noisy`)."""
    return said != 0


def interruptions(performer: Performer, voice: NDArray[np.float32]) -> dict[str, Any]:
    """From `interrupt` to the first frame that leaves with a shut mouth in its own picture."""
    times: list[float] = []
    state: dict[str, Any] = {"jaw": 0.0, "asked": None, "shut": threading.Event()}

    def watch(frame: SpokenFrame) -> None:
        state["jaw"] = 0.0 if frame.is_repeated else float(frame.motion.expression[0, JAW])
        if state["asked"] is not None and not frame.is_repeated and state["jaw"] < SHUT:
            times.append(1000 * (time.monotonic() - state["asked"]))
            state["asked"] = None
            state["shut"].set()

    def script(speaker: LiveSpeaker, talker: Talker) -> None:
        rng = np.random.default_rng(1)
        for _ in range(INTERRUPTIONS):
            state["shut"].clear()
            saying = threading.Thread(target=talker.say, args=(4.0,), daemon=True)
            saying.start()
            time.sleep(1.0 + float(rng.uniform(0, 1)))
            while state["jaw"] < OPEN and saying.is_alive():
                time.sleep(0.002)
            state["asked"] = time.monotonic()
            speaker.interrupt()
            # The voice is heard on: what comes now would open the mouth again, as the next sentence does.
            state["shut"].wait(2)
            saying.join()
            time.sleep(0.5)

    run(performer, voice, script, watch)
    return spread(times) | {"interruptions": len(times)}


def drift(performer: Performer, voice: NDArray[np.float32], minutes: float) -> dict[str, Any]:
    """Counted, with a clock that does not wait and pictures that are not drawn."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    quick = replace(performer, stages=(lambda state: state,))
    frames = samples = 0
    worst = 0.0
    with LiveSpeaker(quick, clock=Clock(lambda: now[0], sleep)) as speaker:

        def say() -> None:
            for start in range(0, int(minutes * 60 * RATE), RATE // 4):
                speaker.hear(np.resize(voice, RATE // 4 + start % 7))

        threading.Thread(target=say, daemon=True).start()
        for frame in speaker:
            frames, samples = frames + 1, samples + len(frame.samples)
            worst = max(worst, abs(samples / RATE - frames / FRAMES_PER_S))
            if frames >= minutes * 60 * FRAMES_PER_S:
                break
    return {
        "minutes": minutes,
        "frames": frames,
        "samples": samples,
        "worst_ms": round(1000 * worst, 4),
        "clock_s": round(now[0], 2),
    }


def spread(values: list[float]) -> dict[str, Any]:
    """Of milliseconds."""
    if not values:
        return {"median": None}
    return {
        "median": round(statistics.median(values), 1),
        "p95": round(float(np.percentile(values, 95)), 1),
        "min": round(min(values), 1),
        "max": round(max(values), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--avatar", type=Path, help="a trained avatar")
    parser.add_argument("--seconds", type=float, default=90, help="of the steady voice, each time")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=10, help="of the counted drift")
    parser.add_argument(
        "--wait", type=float, default=0, help="seconds to wait for a quiet machine before each repeat"
    )
    parser.add_argument("--note", default="", help="what else the machine was doing")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()

    voice = resampled(speak_text(TEXT, "en-us").sound, RATE)[:, 0]
    # Nowhere exactly silent, so that every sample can be found again.
    voice = np.where(np.abs(voice) < 1e-4, np.float32(1e-4), voice)
    avatar = Avatar.load(given.avatar) if given.avatar else stand_in(given.size).avatar
    if not given.avatar:
        agree_for_nobody(Medium(avatar.provenance.recording_sha256, avatar.provenance.recording_name))
    performer = performer_of(avatar, SpeakConfig().drawing(), is_live=True)
    repeats = []
    for _ in range(given.repeats):
        wait_for_quiet(given.wait)
        parts: dict[str, Any] = {}
        for name, measure in (
            ("first_frame_ms", lambda: first_frames(performer, voice)),
            ("steady", lambda: steady(performer, voice, given.seconds)),
            ("interruption_ms", lambda: interruptions(performer, voice)),
        ):
            watch = Lost()
            parts[name] = measure() | watch.cores()
            print(name, parts[name], flush=True)
        repeats.append(parts)
    report = {
        "benchmark": "speaking_live",
        "protocol": "real time, pieces of 20 ms; latencies from `hear` until the frame is handed to the encoder, which "
        "runs meanwhile; a frame whose picture was dropped shows the one before; drift: counted with a simulated clock",
        "command": "python benchmarks/speaking_live.py " + " ".join(named(a) for a in sys.argv[1:]),
        "date": date.today().isoformat(),
        "machine": machine() | {"note": given.note},
        "size": performer.size,
        "look_ahead_ms": 1000 * look_ahead_frames(FRAMES_PER_S) // FRAMES_PER_S,
        "targets": TARGETS,
        "summary": {
            "first_frame_ms": middle(repeats, "first_frame_ms", "median"),
            "first_frame_p95_ms": middle(repeats, "first_frame_ms", "p95"),
            "latency_p50_ms": middle(repeats, "steady", "latency_ms", "median"),
            "latency_p95_ms": middle(repeats, "steady", "latency_ms", "p95"),
            "fps": middle(repeats, "steady", "fps"),
            "repeated_percent": middle(repeats, "steady", "repeated_percent"),
            "interruption_ms": middle(repeats, "interruption_ms", "median"),
            "interruption_p95_ms": middle(repeats, "interruption_ms", "p95"),
        },
        "repeats": repeats,
        "drift": drift(performer, voice, given.minutes),
    }
    given.output.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report["summary"] | {"drift": report["drift"]}, indent=1))


def middle(repeats: list[dict[str, Any]], *path: str) -> dict[str, float]:
    """Median, least and most over the repeats."""
    values = []
    for value in repeats:
        for name in path:
            value = value[name]
        values.append(value)
    return {"median": round(statistics.median(values), 2), "min": min(values), "max": max(values)}  # type: ignore[type-var]


if __name__ == "__main__":
    main()
