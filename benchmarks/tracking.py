"""Accuracy, limits and speed of the tracker on synthetic people, whose true pose and expression are known.

    python benchmarks/tracking.py --output benchmarks/results/tracking.json

No recording is needed. Half of the people are drawn; the other half have the skin of the public-domain portrait that
scikit-image ships. docs/tracking.md explains the numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import skimage.data
from numpy.typing import NDArray
from reports import command
from scipy.spatial.transform import Rotation

from omokage.avatar.conditioning import CHART_MARGIN
from omokage.geometry.camera import yaw_pitch_roll
from omokage.media.clip import Frame, Image
from omokage.pipelines.bench import machine
from omokage.render.rehearsal import Puppet
from omokage.tracking import face_regions as region
from omokage.tracking.face_track import BLENDSHAPES, FaceTrack, Subject
from omokage.tracking.head_axes import head_axes
from omokage.tracking.landmarks import Landmarks, MediaPipeLandmarks
from omokage.tracking.morphable import MorphableModel
from omokage.tracking.observation import Observation, Observer
from omokage.tracking.smoothing import smooth_track
from omokage.tracking.synthetic import SyntheticSubject
from omokage.tracking.tracker import (
    OnlineTracker,
    StateEstimator,
    concatenate,
    identify,
    track_clip,
)

FRAME_RATE = 25.0
NOISE = 2.0  # grey levels, standard deviation, of every clip but the still one
STILL_NOISE = (0.0, 3.0, 8.0)
STILL_SECONDS = 2.0
YAW_STEPS = tuple(range(0, 81, 10))
YAW_HOLD, YAW_MOVE = 3, 3  # frames held at each step, frames on the way to it
HAND_SECONDS = 0.5
AFTER_SECONDS = 0.5
# Where a hand lies, from when (s), and its width and height in widths of the face. At these times the jaw opens, or
# the eyes blink.
HANDS = {
    "mouth": (2.3, 0.62, 0.40),
    "one eye": (1.9, 0.42, 0.34),
    "whole face": (2.3, 1.15, 1.40),
}
EXPRESSIONS = {
    "jawOpen": ("jawOpen",),
    "eyeBlink": ("eyeBlinkLeft", "eyeBlinkRight"),
    "mouthSmile": ("mouthSmileLeft", "mouthSmileRight"),
    "browInnerUp": ("browInnerUp",),
    "browOuterUp": ("browOuterUpLeft", "browOuterUpRight"),
}
FEW = 3  # drawn people for turned heads and hands
SPEED_SIDE_PX = 512
SPEED_FRAMES, SPEED_WARM_UP, SPEED_REPEATS = 80, 40, 3  # the tracker gets to know the skin while warming up

Float = NDArray[np.float64]
Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Clip:
    """A performance of one synthetic person: truth, pictures, and what the tracker made of them."""

    person: SyntheticSubject
    truth: FaceTrack
    frames: list[Frame]
    track: FaceTrack

    @classmethod
    def make(cls, seed: int, seconds: float, size: int, skin: Float32 | None) -> Clip:
        person = SyntheticSubject(seed, skin=skin)
        truth = person.performance(seconds, frame_rate=FRAME_RATE, size=size)
        frames = list(person.render_clip(truth, noise=NOISE))
        return cls(person, truth, frames, track_clip(frames))


def photo_skin() -> Float32:
    """The skin of a photographed face in the model's texture map."""
    atlas = Puppet.of(_portrait(), size=512).atlas
    side = len(atlas)
    place = (((np.arange(side) + 0.5) / side * (1 - 2 * CHART_MARGIN) + CHART_MARGIN) * side - 0.5).astype(
        np.float32
    )
    x, y = np.meshgrid(place, place)
    face = np.ascontiguousarray(atlas[:, :side, :3]).astype(np.float32)
    return np.asarray(np.clip(1.15 * cv2.remap(face, x, y, cv2.INTER_LINEAR), 0, 255), dtype=np.float32)


def _portrait() -> Image:
    return np.asarray(skimage.data.astronaut(), dtype=np.uint8)  # type: ignore[no-untyped-call]


def landmarks_only(clip: Clip) -> FaceTrack:
    """What the landmarks alone give, without the picture of the skin."""
    model, camera = MorphableModel.load(), clip.truth.camera
    observer = Observer(MediaPipeLandmarks())
    seen = [replace(observer.step(frame), crop=None) for frame in clip.frames]
    subject = identify(model, camera, np.array([_points(observation) for observation in seen]))
    estimator = StateEstimator(model, subject, camera)
    track = concatenate([estimator.step(observation) for observation in seen], camera, subject)
    return replace(smooth_track(track), axes=head_axes(subject))


def live_track(frames: Sequence[Frame], subject: Subject | None = None) -> FaceTrack:
    """Frames seen live, by a tracker that got to know the person in the first second of a run before."""
    tracker = OnlineTracker(subject=subject)
    for _ in range(2):
        with tracker.streaming():
            states = [tracker.step(frame) for frame in frames]
    assert tracker.camera is not None
    return replace(concatenate(states, tracker.camera, tracker.subject), axes=head_axes(tracker.subject))


def _points(observation: Observation) -> Float32:
    assert observation.face is not None
    return observation.face.points


def turns(found: FaceTrack, truth: FaceTrack, rest: Sequence[int] | None = None) -> dict[str, Float]:
    """Errors (T,) and (T, 3) in degrees: absolute, and relative to both tracks' rest.

    rest: rows whose median rotation is the rest; by default all, as reenactment takes it.
    """
    errors = {}
    for name in ("absolute", "relative"):
        heads = []
        for track in (found, truth):
            head = Rotation.from_rotvec(track.head_rotation)
            if name == "relative":
                rows = slice(None) if rest is None else list(rest)
                head = Rotation.from_rotvec(np.median(track.head_rotation[rows], axis=0)).inv() * head
            heads.append(head)
        errors[name] = np.degrees((heads[0].inv() * heads[1]).magnitude())
        angles = [yaw_pitch_roll(head.as_rotvec()) for head in heads]
        errors[f"{name}_angles"] = np.degrees(angles[0] - angles[1])
    return errors


def summary(errors: dict[str, Float], rows: Any = slice(None)) -> dict[str, Any]:
    """Medians over frames of the whole turn (with its 95th percentile) and of yaw, pitch and roll.

    mean_absolute_error: over frames, of yaw, pitch and roll, the measure of head pose that benchmarks of it report.
    """
    result: dict[str, Any] = {}
    for name in ("absolute", "relative"):
        turn, angles = errors[name][rows], errors[f"{name}_angles"][rows]
        median = np.median(np.abs(angles), axis=0)
        result[name] = {
            "turn_median": _round(np.median(turn)),
            "turn_p95": _round(np.percentile(turn, 95)),
            **{f"{axis}_median": _round(v) for axis, v in zip(("yaw", "pitch", "roll"), median, strict=True)},
            "yaw_pitch_roll_mean": _round(median.mean()),
            "mean_absolute_error": _round(np.abs(angles).mean()),
            "signed_median": [_round(v) for v in np.median(angles, axis=0)],
        }
    return result


def measure_performance(clip: Clip) -> dict[str, Any]:
    """Pose error and how expressions follow the truth: the tracker, live, and from landmarks alone."""
    return {
        "frames": len(clip.truth),
        "found_share": _round(clip.track.is_tracked.mean()),
        "true_yaw_max_deg": _round(np.degrees(np.abs(yaw_pitch_roll(clip.truth.rotation)[:, 0]).max())),
        **against_truth(clip.track, clip.truth),
        "live": against_truth(live_track(clip.frames), clip.truth),
        "landmarks_only": against_truth(landmarks_only(clip), clip.truth),
    }


def against_truth(track: FaceTrack, truth: FaceTrack) -> dict[str, Any]:
    """Pose errors, and correlation and slope of the expressions."""
    correlation, slope = {}, {}
    for label, names in EXPRESSIONS.items():
        rows = [BLENDSHAPES.index(name) for name in names]
        found, true = (t.expression[:, rows].mean(axis=1) for t in (track, truth))
        correlation[label] = _round(np.corrcoef(found, true)[0, 1])
        slope[label] = _round(np.polyfit(true, found, 1)[0])
    return {
        "pose_deg": summary(turns(track, truth)),
        "correlation": correlation,
        "found_per_true": slope,
    }


def measure_yaw(clips: Sequence[Clip]) -> list[dict[str, Any]]:
    """The head turns in steps to either side, face at rest; every step of all people and both sides together."""
    pooled: dict[int, list[dict[str, Any]]] = {step: [] for step in YAW_STEPS}
    alone = MediaPipeLandmarks(is_stream=False)
    for clip in clips:
        for side in (-1, 1):
            yaw = np.concatenate(
                [
                    np.r_[np.linspace(max(0, step - 10), step, YAW_MOVE + 1)[1:], [step] * YAW_HOLD]
                    for step in YAW_STEPS
                ]
            )
            truth = clip.person.performance(len(yaw) / FRAME_RATE, size=clip.truth.camera.width, motion=0.0)
            truth = replace(truth, rotation=np.stack([0 * yaw, side * np.radians(yaw), 0 * yaw], axis=1))
            frames = list(clip.person.render_clip(truth, noise=NOISE))
            track = track_clip(frames, subject=clip.track.subject, axes=clip.track.axes)
            held = np.arange(len(yaw)).reshape(len(YAW_STEPS), -1)[:, -YAW_HOLD:]
            errors = turns(track, truth, rest=held[0].tolist())
            acted = track.expression[
                :, [BLENDSHAPES.index(n) for names in EXPRESSIONS.values() for n in names]
            ]
            errors["false_expression"] = np.abs(acted - np.median(acted[held[0]], axis=0)).max(axis=1)
            for step, rows in zip(YAW_STEPS, held, strict=True):
                for row in rows:
                    pooled[step].append(
                        {name: error[row] for name, error in errors.items()}
                        | {"found": bool(track.is_tracked[row]), "confidence": float(track.confidence[row])}
                        | {"found_alone": bool(alone.detect(frames[row].image))}
                    )
    return [_yaw_row(step, rows) for step, rows in pooled.items()]


def _yaw_row(step: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
    found = [row for row in rows if row["found"]]
    result: dict[str, Any] = {
        "yaw": step,
        "frames": len(rows),
        "found_share": _round(len(found) / len(rows)),
        "found_share_picture_alone": _round(statistics.mean(row["found_alone"] for row in rows)),
    }
    if found:
        names = ("absolute", "absolute_angles", "relative", "relative_angles")
        errors = {name: np.array([row[name] for row in found]) for name in names}
        confidence = [row["confidence"] for row in found]
        result |= {"pose_deg": summary(errors), "confidence_median": _round(np.median(confidence))}
        result["confidence_min"] = _round(min(confidence))
        result["false_expression_max"] = _round(max(row["false_expression"] for row in found))
    return result


def measure_still(clip: Clip) -> list[dict[str, Any]]:
    """Standard deviation over time of a still head, by the camera's noise: raw, smoothed offline, and live."""
    truth = clip.person.performance(STILL_SECONDS, size=clip.truth.camera.width, motion=0.0)
    clean = next(iter(clip.person.render_clip(truth))).image.astype(np.float64)
    rows = []
    for noise in STILL_NOISE:
        rng = np.random.default_rng(0)
        frames = [
            Frame(
                i,
                float(truth.time_s[i]),
                np.clip(np.round(clean + rng.normal(0, noise, clean.shape)), 0, 255).astype(np.uint8),
            )
            for i in range(len(truth))
        ]
        raw = track_clip(frames, subject=clip.track.subject, smooth=False)
        tracks = {
            "raw": raw,
            "offline": smooth_track(raw),
            "live": live_track(frames, clip.track.subject),
        }
        rows.append({"noise_levels": noise} | {name: _jitter(track) for name, track in tracks.items()})
    return rows


def _jitter(track: FaceTrack) -> dict[str, float]:
    return {
        "angle_deg_max": _round(np.degrees(yaw_pitch_roll(track.rotation)).std(axis=0).max()),
        "translation_xy_cm_max": _round(track.translation[:, :2].std(axis=0).max()),
        "distance_cm": _round(track.translation[:, 2].std()),
        "expression_max": _round(track.expression.std(axis=0).max()),
        "gaze_deg_max": _round(np.degrees(track.gaze.std(axis=0)).max()),
        "landmark_px": _round(track.landmarks[..., :2].std(axis=0).mean()),
    }


def measure_hand(clip: Clip, where: str) -> dict[str, Any]:
    """A hand lies on the face for half a second; compared with the same clip without it, person known."""
    start_s, wide, high = HANDS[where]
    first, last = round(start_s * FRAME_RATE), round((start_s + HAND_SECONDS) * FRAME_RATE)
    frames = [
        replace(frame, image=covered(clip, row, where, wide, high)) if first <= row < last else frame
        for row, frame in enumerate(clip.frames)
    ]
    clear = track_clip(clip.frames, subject=clip.track.subject, axes=clip.track.axes)
    track = track_clip(frames, subject=clip.track.subject, axes=clip.track.axes)
    moved = turns(track, clear)["absolute"]
    during = slice(first, last)
    after = slice(last, last + round(AFTER_SECONDS * FRAME_RATE))
    jaw = BLENDSHAPES.index("jawOpen")
    hidden, seen = BLENDSHAPES.index("eyeBlinkRight"), BLENDSHAPES.index("eyeBlinkLeft")

    def values(index: int) -> dict[str, float]:
        return {
            f"{name}_{label}": _round(t.expression[rows, index].max())
            for name, t in (("true", clip.truth), ("clear", clear), ("hand", track))
            for label, rows in (("during_max", during),)
        } | {
            f"moved_{label}_max": _round(
                np.abs(track.expression[rows, index] - clear.expression[rows, index]).max()
            )
            for label, rows in (("during", during), ("after", after))
        }

    return {
        "where": where,
        "found_share_during": _round(track.is_tracked[during].mean()),
        "found_share_after": _round(track.is_tracked[after].mean()),
        "confidence_clear": _round(np.median(clear.confidence[during])),
        "confidence_during_median": _round(np.median(track.confidence[during])),
        "confidence_during_min": _round(track.confidence[during].min()),
        "pose_error_deg_clear": _round(np.median(turns(clear, clip.truth)["absolute"][during])),
        "pose_error_deg_during": _round(np.median(turns(track, clip.truth)["absolute"][during])),
        "pose_moved_deg_during_max": _round(moved[during].max()),
        "pose_moved_deg_after_max": _round(moved[after].max()),
        "settled_after_s": _settled(moved, last),
        "jawOpen": values(jaw),
        "eyeBlink_picture_left": values(hidden),
        "eyeBlink_picture_right": values(seen),
    }


def _settled(moved: Float, last: int) -> float:
    """Seconds after the hand is gone until the head stays within 1 degree of the clip without it."""
    late = np.flatnonzero(moved[last:] > 1.0)
    return _round((late[-1] + 1) / FRAME_RATE if len(late) else 0.0)


def covered(clip: Clip, row: int, where: str, wide: float, high: float) -> Image:
    """The picture with four skin-colored fingers, side by side, over a part of the face (the picture's left eye)."""
    truth, model = clip.truth, clip.person.model
    vertices = model.pose_vertices(clip.person.subject, truth.expression[row], truth.gaze[row])[:478]
    points = truth.camera.project(model.to_camera(vertices, truth.rotation[row], truth.translation[row]))
    irises = sorted(region.IRIS_CENTERS, key=lambda index: float(points[index, 0]))
    aim = {"mouth": [13, 14], "one eye": [irises[0]], "whole face": list(range(468))}[where]
    center, face_px = points[aim, :2].mean(axis=0), float(np.ptp(points[:, 0]))
    image = clip.frames[row].image.copy()
    x, y = points[4, :2].astype(int)  # the tip of the nose
    skin = np.median(image[y - 4 : y + 5, x - 4 : x + 5].reshape(-1, 3), axis=0)
    thick = high * face_px / 4
    for finger in range(4):
        middle = center + np.array([0.0, (finger - 1.5) * thick])
        half = np.array([max(0.0, (wide * face_px - thick) / 2), 0.0])
        ends = [tuple(np.round((middle + sign * half) * 16).astype(int).tolist()) for sign in (-1, 1)]
        for color, share in ((skin * 0.75, 1.0), (skin, 0.86)):
            cv2.line(image, ends[0], ends[1], color.tolist(), max(1, round(thick * share)), cv2.LINE_AA, 4)
    return image


class TimedBackend:
    """The landmark network with a stopwatch."""

    def __init__(self) -> None:
        self._network, self.seconds = MediaPipeLandmarks(), 0.0

    def detect(self, image: Image) -> list[Landmarks]:
        start = time.perf_counter()
        faces = self._network.detect(image)
        self.seconds += time.perf_counter() - start
        return faces

    def reset(self) -> None:
        self._network.reset()


def measure_speed(frames: Sequence[Frame], subject: Subject) -> dict[str, Any]:
    """Detection to parameters, one frame after the other, one program; the machine's load is stated beside it."""
    large = [
        np.asarray(
            cv2.resize(f.image, (SPEED_SIDE_PX, SPEED_SIDE_PX), interpolation=cv2.INTER_CUBIC), np.uint8
        )
        for f in frames[: SPEED_FRAMES + SPEED_WARM_UP]
    ]
    repeats = []
    for _ in range(SPEED_REPEATS):
        backend = TimedBackend()
        tracker, whole, network = OnlineTracker(subject=subject, backend=backend), [], []
        before, cpu = os.getloadavg()[0], time.process_time()
        for index, image in enumerate(large):
            backend.seconds, start = 0.0, time.perf_counter()
            tracker.step(Frame(index, index / FRAME_RATE, image))
            whole.append((time.perf_counter() - start) * 1000)
            network.append(backend.seconds * 1000)
        whole, network = whole[SPEED_WARM_UP:], network[SPEED_WARM_UP:]
        repeats.append(
            {
                "median_ms": _round(statistics.median(whole)),
                "p95_ms": _round(np.percentile(whole, 95)),
                "min_ms": _round(min(whole)),
                "network_median_ms": _round(statistics.median(network)),
                "frames_per_second": _round(1000 / statistics.mean(whole)),
                "cpu_ms_per_frame": _round((time.process_time() - cpu) * 1000 / len(large)),
                "load_before": before,
                "load_after": os.getloadavg()[0],
            }
        )
    return {
        "picture_px": SPEED_SIDE_PX,
        "frames": SPEED_FRAMES,
        "picture": f"rendered at {frames[0].image.shape[0]} and enlarged",
        "machine_shared": True,
        "repeats": repeats,
    }


def spread(clips: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Median, smallest and largest over the people, of the numbers that have a target, by way of tracking."""
    ways = {"offline": clips} | {way: [c[way] for c in clips] for way in ("live", "landmarks_only")}
    return {way: _spread(measured) for way, measured in ways.items()}


def _spread(clips: Sequence[dict[str, Any]]) -> dict[str, Any]:
    values = {
        f"pose_{kind}_{name}": [c["pose_deg"][kind][name] for c in clips]
        for kind in ("absolute", "relative")
        for name in ("turn_median", "turn_p95", "yaw_pitch_roll_mean", "mean_absolute_error")
    } | {f"correlation_{name}": [c["correlation"][name] for c in clips] for name in EXPRESSIONS}
    return {
        name: {"median": _round(statistics.median(v)), "min": min(v), "max": max(v)}
        for name, v in values.items()
    }


def _round(value: Any) -> float:
    return round(float(value), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4, 5], help="one person each")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    started, load = time.monotonic(), os.getloadavg()[0]
    people = {
        kind: [Clip.make(seed, arguments.seconds, arguments.size, skin) for seed in arguments.seeds]
        for kind, skin in (("drawn", None), ("photo skin", photo_skin()))
    }
    performances = {
        kind: [
            {"seed": seed} | measure_performance(clip)
            for seed, clip in zip(arguments.seeds, clips, strict=True)
        ]
        for kind, clips in people.items()
    }
    clips, seeds = people["drawn"][:FEW], arguments.seeds[:FEW]
    result: dict[str, Any] = {
        "benchmark": "tracking",
        "protocol": "synthetic people with known truth; see docs/tracking.md. Angles in degrees; 'relative' is against "
        "each track's own rest; 'found_share' counts frames marked as tracked",
        "command": command(),
        "date": date.today().isoformat(),
        "machine": machine(),
        "seeds": arguments.seeds,
        "size": arguments.size,
        "frame_rate": FRAME_RATE,
        "noise_levels": NOISE,
        "targets": {"pose_deg": 1.5, "correlation": 0.9, "tracking_fps": 40},
        "over_people": {kind: spread(measured) for kind, measured in performances.items()},
        "performance": performances,
        "yaw": measure_yaw(clips),
        "still": measure_still(clips[0]),
        "hand": [
            {"seed": seed} | measure_hand(clip, where)
            for seed, clip in zip(seeds, clips, strict=True)
            for where in HANDS
        ],
        "speed": measure_speed(clips[0].frames, clips[0].track.subject),
    }
    result |= {"load_before": load, "load_after": os.getloadavg()[0]}
    result["seconds"] = round(time.monotonic() - started, 1)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    partial = arguments.output.with_name(arguments.output.name + ".part")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    partial.replace(arguments.output)
    print(json.dumps(result["over_people"], indent=1))


if __name__ == "__main__":
    main()
