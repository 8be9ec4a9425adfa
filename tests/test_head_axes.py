"""The axes of a head: a face's shape says where straight ahead is, and turning them changes nothing that is seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from omokage.geometry.camera import yaw_pitch_roll
from omokage.tracking import face_regions as region
from omokage.tracking.face_track import BLENDSHAPES, Subject
from omokage.tracking.head_axes import MAX_TURN_RAD, aligned_shape, with_head_axes
from omokage.tracking.morphable import MorphableModel
from omokage.tracking.synthetic import SyntheticSubject
from omokage.tracking.tracker import track_clip


@pytest.fixture(scope="module")
def face() -> Subject:
    model = MorphableModel.load()
    return model.subject(np.random.default_rng(3).normal(0, 0.3, len(model.id_basis)))


def turned(face: Subject, angles_deg: list[float]) -> Subject:
    matrix = Rotation.from_euler("xyz", angles_deg, degrees=True).as_matrix().astype(np.float32)
    return replace(face, neutral=face.neutral @ matrix.T, blendshapes=face.blendshapes @ matrix.T)


def test_a_face_in_its_axes_is_the_same_face_turned(face: Subject) -> None:
    """Neutral and expressions by one rotation about the middle of the skin, so that every picture stays possible."""
    found = with_head_axes(face)
    before, after = (each.neutral[: region.SKIN_COUNT] for each in (face, found))
    rotation, left = Rotation.align_vectors(after - after.mean(axis=0), before - before.mean(axis=0))
    assert left < 0.01 and 0.1 < np.degrees(rotation.magnitude()) < 10
    np.testing.assert_allclose(after.mean(axis=0), before.mean(axis=0), atol=1e-4)
    jaw = BLENDSHAPES.index("jawOpen")
    np.testing.assert_allclose(found.blendshapes[jaw], rotation.apply(face.blendshapes[jaw]), atol=1e-3)
    whites = slice(region.LANDMARK_COUNT, None)
    np.testing.assert_allclose(
        found.neutral[whites],
        rotation.apply(face.neutral[whites] - before.mean(axis=0)) + after.mean(axis=0),
        atol=1e-3,
    )


def test_the_axes_do_not_depend_on_those_a_face_comes_in(face: Subject) -> None:
    known = with_head_axes(face)
    for other in (known, turned(face, [9.0, -7.0, 4.0])):
        found = with_head_axes(other)
        shift = found.neutral.mean(axis=0) - known.neutral.mean(axis=0)
        np.testing.assert_allclose(found.neutral - shift, known.neutral, atol=2e-3)


def test_a_strange_face_is_turned_a_little_only() -> None:
    model = MorphableModel.load()
    strange = model.subject(np.random.default_rng(1).normal(0, 5, len(model.id_basis)))
    turns = [Rotation.from_matrix(aligned_shape(each)[1]) for each in (strange, with_head_axes(strange))]
    assert (turns[1] * turns[0].inv()).magnitude() < np.sqrt(3) * MAX_TURN_RAD + 1e-3


def test_the_pose_against_the_camera_is_under_a_degree_and_a_half() -> None:
    """Of somebody whom nothing was learned from, and whose pitch is 3.7 degrees off without the axes."""
    person = SyntheticSubject(6)
    truth = person.performance(5.0, frame_rate=15.0, size=320)
    track = track_clip(person.render_clip(truth, noise=2.0))
    off = np.degrees(yaw_pitch_roll(track.rotation) - yaw_pitch_roll(truth.rotation))
    assert np.abs(off).mean() < 1.5
    assert np.abs(np.median(off, axis=0)).max() < 3.0
