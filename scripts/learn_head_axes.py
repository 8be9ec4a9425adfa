"""Learns where straight ahead is from the shape of a solved face, on made-up people whose heads have known axes.

    python scripts/learn_head_axes.py src/omokage/tracking/data/head_axes.npz

Half of the people are drawn, half have the skin of the public-domain portrait that scikit-image ships; each moves in
a way of their own, at a distance of their own. None of them is in benchmarks/tracking.py. What the file holds at
present does not matter: what is learned is independent of the axes that a face comes in. Takes a quarter of an hour on
two cores; prints how far off the axes are for people who were not learned from.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from omokage.files import saving
from omokage.threads import one_blas_thread
from omokage.tracking import face_regions as region
from omokage.tracking.face_track import FaceTrack, Subject
from omokage.tracking.fitting import FaceFitter
from omokage.tracking.head_axes import aligned_shape
from omokage.tracking.identity import fit_all, key_frames, solve_identity
from omokage.tracking.landmarks import MediaPipeLandmarks
from omokage.tracking.morphable import MorphableModel
from omokage.tracking.synthetic import SyntheticSubject
from omokage.tracking.tracker import CALIBRATION_FRAMES, KEY_FRAMES, identify

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from tracking import NOISE, photo_skin

Float = NDArray[np.float64]

FIRST_SEED, PEOPLE = 1000, 160
SECONDS, FRAME_RATE, SIDE_PX = 6.0, 8.0, 320
# Of yaw, pitch and roll, radians: deviation of the middle, and how far around it at most.
TURNED, TURNING = (0.14, 0.10, 0.06), (0.34, 0.18, 0.12)
RIDGE = 0.03  # share of the shapes' mean power
FOLDS = 20

skin_of = {"drawn": lambda: None, "photo skin": cache(photo_skin)}


def person(kind: str, seed: int) -> list[tuple[Float, Float]]:
    """Shapes (1404,) as solved of the whole performance and, as live, of its beginning; the turn (3,) to the axes."""
    cv2.setNumThreads(1)
    rng = np.random.default_rng([seed, 1])  # nothing of the motion may tell of the shape
    made_up = SyntheticSubject(seed, skin=skin_of[kind](), distance=rng.uniform(52, 80))
    truth = moved(made_up.performance(SECONDS, frame_rate=FRAME_RATE, size=SIDE_PX), rng)
    network, seen, rows = MediaPipeLandmarks(), [], []
    for row, frame in enumerate(made_up.render_clip(truth, noise=NOISE)):
        for face in network.detect(frame.image):
            seen.append(face.points)
            rows.append(row)
    model, points = MorphableModel.load(), np.array(seen)
    begin = points[:CALIBRATION_FRAMES]
    with one_blas_thread():
        early = solve_identity(model, truth.camera, begin[key_frames(begin, KEY_FRAMES // 2)])
        late = identify(model, truth.camera, points)
        return [example(subject, truth, rows, part) for subject, part in ((late, points), (early, begin))]


def moved(truth: FaceTrack, rng: np.random.Generator) -> FaceTrack:
    """The performance with a motion of the head that nobody else has."""
    yaw, pitch, roll = rng.normal(0, TURNED)
    reach = rng.uniform(0.4, 1.2) * np.array(TURNING)
    phase, speed = rng.uniform(0, 2 * np.pi, 3), rng.uniform(0.8, 3, 3)
    swing = reach * np.sin(truth.time_s[:, None] * speed + phase)
    middle = Rotation.from_euler("yxz", [yaw, pitch, roll])
    heads = middle * Rotation.from_rotvec(swing[:, [1, 0, 2]])
    return replace(truth, rotation=heads.as_rotvec())


def example(
    subject: Subject, truth: FaceTrack, rows: list[int], points: NDArray[np.float32]
) -> tuple[Float, Float]:
    """The aligned shape, and the turn from it to the head's true axes (axis-angle)."""
    fits = fit_all(FaceFitter(MorphableModel.load(), subject, truth.camera), points)
    found = Rotation.from_rotvec([fit.rotation for fit in fits])
    off = (found.inv() * Rotation.from_rotvec(truth.rotation[rows[: len(points)]])).mean()
    shape, turn = aligned_shape(subject)
    return shape, (Rotation.from_matrix(turn) * off).as_rotvec()


def fitted(shapes: Float, turns: Float) -> tuple[Float, Float]:
    """Offset (3,) and weights (1404, 3) of turns (N, 3), by ridge regression: a symmetric face nods only, and what is
    not symmetric turns and tilts it."""
    offset, weights = np.empty(3), np.empty((shapes.shape[1], 3))
    for sign, axes in ((1, [0]), (-1, [1, 2])):
        part, middle = symmetric(shapes, sign), turns[:, axes].mean(axis=0)
        mean = part.mean(axis=0)
        alike = (part - mean) @ (part - mean).T
        alike += RIDGE * np.trace(alike) / len(alike) * np.eye(len(alike))
        learned = (part - mean).T @ np.linalg.solve(alike, turns[:, axes] - middle)
        weights[:, axes] = symmetric(learned.T, sign).T
        offset[axes] = middle - mean @ learned
    return offset, weights


def symmetric(shapes: Float, sign: int) -> Float:
    """The part of shapes (N, 1404) that is the same in a mirror (sign 1), or the opposite (-1)."""
    skin = shapes.reshape(len(shapes), region.SKIN_COUNT, 3)
    mirrored = skin[:, MorphableModel.load().mirror] * [-1, 1, 1]
    return np.asarray((skin + sign * mirrored) / 2).reshape(len(shapes), -1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--people", type=int, default=PEOPLE, help="of each kind")
    given = parser.parse_args()
    everybody = [(kind, FIRST_SEED + i) for i in range(given.people) for kind in skin_of]
    found = []
    with ProcessPoolExecutor(2) as pool:
        for done, examples in enumerate(pool.map(person, *zip(*everybody, strict=True)), 1):
            found.append(examples)
            print(f"\r{done} of {len(everybody)} people", end="", flush=True)
    shapes, turns = (np.array([[e[part] for e in examples] for examples in found]) for part in (0, 1))
    fold = np.array([seed for _, seed in everybody]) % FOLDS
    errors = np.empty_like(turns)
    for number in range(FOLDS):
        inside = fold == number
        offset, weights = fitted(
            *(values[~inside].reshape(-1, values.shape[2]) for values in (shapes, turns))
        )
        ahead = Rotation.from_rotvec((offset + shapes[inside] @ weights).reshape(-1, 3))
        left = ahead.inv() * Rotation.from_rotvec(turns[inside].reshape(-1, 3))
        errors[inside] = left.as_rotvec().reshape(-1, 2, 3)
    for name, values in (("before", turns), ("after", errors)):
        for part, what in enumerate(("whole performance", "its beginning")):
            print(
                f"\n{name}, {what}: mean error of pitch, yaw, roll",
                np.degrees(np.abs(values[:, part])).mean(0).round(2),
                end="",
            )
    print("\nlargest turn", np.abs(turns).max(axis=(0, 1)).round(3))
    offset, weights = fitted(shapes.reshape(-1, shapes.shape[2]), turns.reshape(-1, 3))
    with saving(given.output) as part, part.open("wb") as file:
        np.savez(file, offset=offset.astype(np.float32), weights=weights.astype(np.float32))


if __name__ == "__main__":
    main()
