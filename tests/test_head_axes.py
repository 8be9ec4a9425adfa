"""The axes of a head: a face's shape says where straight ahead is, whichever way its mesh lies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from scipy.spatial.transform import Rotation

from omokage.geometry.camera import yaw_pitch_roll
from omokage.tracking.face_track import FaceTrack, Subject
from omokage.tracking.head_axes import MAX_TURN_RAD, aligned_shape, head_axes
from omokage.tracking.morphable import MorphableModel
from omokage.tracking.synthetic import SyntheticSubject
from omokage.tracking.tracker import track_clip


def made_up(deviation: float, seed: int = 3) -> Subject:
    model = MorphableModel.load()
    return model.subject(np.random.default_rng(seed).normal(0, deviation, len(model.id_basis)))


@pytest.fixture(scope="module")
def tracked() -> tuple[FaceTrack, FaceTrack]:
    """Somebody whom nothing was learned from, and whose mesh looks 3.7 degrees too low; and the truth."""
    person = SyntheticSubject(6)
    truth = person.performance(5.0, frame_rate=15.0, size=320)
    return track_clip(person.render_clip(truth, noise=2.0)), truth


def test_the_axes_turn_with_the_mesh_and_do_not_depend_on_how_it_lies() -> None:
    face = made_up(0.3)
    known = Rotation.from_rotvec(head_axes(face))
    assert 0.1 < np.degrees(known.magnitude()) < 10
    for angles in ([9.0, -7.0, 4.0], [-60.0, 30.0, 0.0]):
        turn = Rotation.from_euler("xyz", angles, degrees=True)
        lying = replace(face, neutral=turn.apply(face.neutral) + np.array([1.0, 2.0, 3.0]))
        found = Rotation.from_rotvec(head_axes(lying))
        assert np.degrees((found.inv() * turn * known).magnitude()) < 0.02


def test_a_strange_face_is_turned_a_little_only() -> None:
    strange = made_up(5.0, seed=1)
    laid_on_the_mean = Rotation.from_matrix(aligned_shape(strange)[1])
    turn = laid_on_the_mean * Rotation.from_rotvec(head_axes(strange))
    assert turn.magnitude() < np.sqrt(3) * MAX_TURN_RAD + 1e-6


def test_the_pose_against_the_camera_is_under_a_degree_and_a_half(
    tracked: tuple[FaceTrack, FaceTrack],
) -> None:
    found, truth = tracked
    off = np.degrees(yaw_pitch_roll(found.head_rotation) - yaw_pitch_roll(truth.head_rotation))
    assert np.abs(off).mean() < 1.5
    assert np.abs(np.median(off, axis=0)).max() < 3.0
    np.testing.assert_allclose(
        truth.head_rotation, truth.rotation, atol=1e-12
    )  # nothing is taken off what is known


def test_the_axes_of_a_known_person_are_those_that_are_given(tracked: tuple[FaceTrack, FaceTrack]) -> None:
    """They were read when the person was identified; the face has been corrected since."""
    track = tracked[0]
    person = SyntheticSubject(6)
    frames = list(person.render_clip(tracked[1].select(slice(0, 3))))
    again = track_clip(frames, subject=track.subject, axes=track.axes)
    np.testing.assert_array_equal(again.axes, track.axes)
    assert np.linalg.norm(track_clip(frames, subject=track.subject).axes - track.axes) > 1e-3


def test_the_axes_are_kept_in_the_file_and_older_files_have_none(
    tracked: tuple[FaceTrack, FaceTrack], tmp_path: Path
) -> None:
    track = tracked[0]
    path = tmp_path / "a.track"
    track.save(path)
    np.testing.assert_array_equal(FaceTrack.load(path).head_rotation, track.head_rotation)
    assert np.degrees(np.linalg.norm(track.select(slice(0, 3)).axes)) > 1
    tensors = load_file(path)
    del tensors["axes"]
    with safe_open(path, framework="numpy") as file:
        save_file(tensors, path, file.metadata())
    np.testing.assert_allclose(FaceTrack.load(path).head_rotation, track.rotation, atol=1e-12)
