"""The morphable model: shape of the data, texture map, expressions that do what their name says."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from omokage.geometry.camera import rotation_matrix, turned_further
from omokage.geometry.mesh import boundary_loops, edges, vertex_normals
from omokage.geometry.rasterize import rasterize
from omokage.tracking import face_regions as region
from omokage.tracking.face_track import BLENDSHAPES, Subject
from omokage.tracking.morphable import MorphableModel, gaze_rotation

MODEL = MorphableModel.load()
ON_SKIN = slice(0, region.SKIN_COUNT)


@cache
def random_subject(seed: int) -> Subject:
    rng = np.random.default_rng(seed)
    return MODEL.subject(rng.normal(0, 0.4, len(MODEL.id_basis)))


def expression(**weights: float) -> np.ndarray:
    values = np.zeros(len(BLENDSHAPES))
    for name, weight in weights.items():
        values[BLENDSHAPES.index(name)] = weight
    return values


def front_view(vertices: np.ndarray) -> np.ndarray:
    pixels = np.stack([vertices[:, 0] * 10 + 128, vertices[:, 1] * 10 + 100, vertices[:, 2] + 60], axis=-1)
    return rasterize(pixels, MODEL.triangles, 256, 256).triangle_id


def test_shapes_and_symmetry() -> None:
    assert MODEL.neutral.shape == (MODEL.vertex_count, 3)
    assert MODEL.blendshapes.shape == (52, MODEL.vertex_count, 3)
    assert MODEL.triangles.max() < MODEL.vertex_count
    skin = MODEL.neutral[ON_SKIN]
    np.testing.assert_allclose(skin[MODEL.mirror] * [-1, 1, 1], skin, atol=1e-4)
    eyes = [skin[[33, 133]].mean(0), skin[[362, 263]].mean(0)]
    assert np.linalg.norm(eyes[1] - eyes[0]) == pytest.approx(6.3, abs=0.3)
    assert skin[:, 2].argmin() in region.NOSE_RIDGE  # the nose is in front


def test_mesh_is_a_disk_with_three_holes_and_points_outwards() -> None:
    skin = MODEL.triangles[: MODEL.skin_triangle_count]
    assert region.SKIN_COUNT - len(edges(skin)) + len(skin) == 1 - 3
    loops = boundary_loops(skin)
    assert [len(loop) for loop in loops] == [36, 20, 16, 16]
    assert set(loops[1]) == set(MODEL.lips_inner)
    assert {frozenset(loop) for loop in loops[2:]} == {frozenset(MODEL.left_eye), frozenset(MODEL.right_eye)}
    normals = vertex_normals(MODEL.neutral, skin)[ON_SKIN]
    assert (normals[:, 2] < 0.2).mean() > 0.97


def test_texture_map_has_no_overlap() -> None:
    corners = MODEL.uv[MODEL.triangles].astype(float)
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]
    assert MODEL.uv.min() >= 0 and MODEL.uv.max() <= 1
    skin = area[: MODEL.skin_triangle_count]
    assert (np.sign(skin) == np.sign(skin[0])).all()
    flat = np.concatenate([MODEL.uv * 512, np.full((MODEL.vertex_count, 1), 10.0)], axis=1)
    alone = sum(
        int((rasterize(flat, MODEL.triangles[part], 512, 512).triangle_id >= 0).sum())
        for part in (slice(0, MODEL.skin_triangle_count), slice(MODEL.skin_triangle_count, None))
    )
    together = int((rasterize(flat, MODEL.triangles, 512, 512).triangle_id >= 0).sum())
    assert alone == together


def test_left_and_right_are_mirror_images() -> None:
    for name in BLENDSHAPES:
        if name.endswith("Left"):
            left = MODEL.blendshapes[BLENDSHAPES.index(name), ON_SKIN]
            right = MODEL.blendshapes[BLENDSHAPES.index(name[:-4] + "Right"), ON_SKIN]
            np.testing.assert_allclose(right, left[MODEL.mirror] * [-1, 1, 1], atol=1e-6)
            side = np.linalg.norm(left, axis=1)
            assert side[MODEL.neutral[ON_SKIN, 0] > 0].sum() > side[MODEL.neutral[ON_SKIN, 0] < 0].sum() or (
                name in ("jawLeft", "mouthLeft")
            )


@pytest.mark.parametrize("seed", [0, 1])
def test_a_blink_closes_exactly_and_hides_the_eye(seed: int) -> None:
    person = random_subject(seed)
    closed = person.vertices(expression(eyeBlinkLeft=1, eyeBlinkRight=1))
    for loop in (MODEL.left_eye, MODEL.right_eye):
        upper, lower = loop[1:8], loop[9:][::-1]
        np.testing.assert_allclose(closed[upper], closed[lower], atol=1e-5)
    is_eye = np.isin(MODEL.triangles, np.concatenate(MODEL.eye_vertices)).any(axis=1)
    seen = front_view(closed)
    assert is_eye[seen[seen >= 0]].sum() < 20
    assert is_eye[front_view(person.neutral)[front_view(person.neutral) >= 0]].sum() > 100


@pytest.mark.parametrize("seed", [0, 1])
def test_mouth_close_closes_an_open_jaw(seed: int) -> None:
    person = random_subject(seed)
    upper, lower = list(region.UPPER_LIP[3]), list(region.LOWER_LIP[3])
    rest = person.neutral[lower] - person.neutral[upper]
    opened = person.vertices(expression(jawOpen=1))
    closed = person.vertices(expression(jawOpen=1, mouthClose=1))
    assert (opened[14] - opened[13])[1] > 2.0
    np.testing.assert_allclose(closed[lower] - closed[upper], rest, atol=1e-4)
    assert abs(closed[152, 1] - opened[152, 1]) < 0.1  # the chin stays down


def test_names_do_what_they_say() -> None:
    rest = MODEL.neutral
    person = random_subject(0)

    def moved(vertex: int, axis: int, **weights: float) -> float:
        return float((person.vertices(expression(**weights)) - person.neutral)[vertex, axis])

    assert moved(291, 0, mouthSmileLeft=1) > 0.4 and moved(291, 1, mouthSmileLeft=1) < -0.4
    assert moved(291, 1, mouthFrownLeft=1) > 0.4
    assert moved(336, 1, browInnerUp=1) < -0.5 and moved(107, 1, browInnerUp=1) < -0.5
    assert moved(300, 1, browOuterUpLeft=1) < -0.5
    assert moved(13, 2, mouthPucker=1) < -0.4 and moved(291, 0, mouthPucker=1) < -0.5
    assert moved(152, 0, jawLeft=1) > 0.5 and moved(152, 2, jawForward=1) < -0.5
    assert rest.dtype == np.float32


def test_gaze_turns_the_iris() -> None:
    gaze = np.array([[0.3, 0.0], [0.0, 0.2]])
    looked = MODEL.pose_vertices(random_subject(0), np.zeros(52), gaze)
    shift = (looked - random_subject(0).neutral)[list(region.IRIS_CENTERS)]
    assert shift[0, 0] == pytest.approx(1.2 * np.sin(0.3), abs=1e-3)  # to the picture's right
    assert shift[1, 1] == pytest.approx(-1.2 * np.sin(0.2), abs=1e-3)  # up
    np.testing.assert_allclose((gaze_rotation(0.3, 0.2) @ [0, 0, -1])[0], np.sin(0.3) * np.cos(0.2))
    np.testing.assert_array_equal(looked[ON_SKIN], random_subject(0).vertices(np.zeros(52))[ON_SKIN])


def test_the_open_mouth_is_filled() -> None:
    seen = front_view(random_subject(0).vertices(expression(jawOpen=1)))
    inner = random_subject(0).vertices(expression(jawOpen=1))[MODEL.lips_inner]
    low, high = inner.min(0), inner.max(0)
    rows, columns = np.mgrid[0:256, 0:256]
    x, y = (columns + 0.5 - 128) / 10, (rows + 0.5 - 100) / 10
    inside = (np.abs(x) < 0.5 * high[0]) & (y > low[1]) & (y < high[1])
    assert inside.sum() > 500
    assert (seen[inside] >= 0).all()


def test_one_turn_is_like_many() -> None:
    """The quick way for a single turn against the plain one, and turns after one another against SciPy."""
    rng = np.random.default_rng(0)
    turns = np.concatenate(
        [rng.normal(0, 1, (20, 3)), np.zeros((1, 3)), [[1e-10, 0, 0], [0, np.pi - 1e-6, 0]]]
    )
    assert np.abs(rotation_matrix(turns) - [rotation_matrix(turn) for turn in turns]).max() < 1e-12
    before = rng.normal(0, 1, turns.shape)
    both = np.array([turned_further(turn, first) for turn, first in zip(turns, before, strict=True)])
    expected = Rotation.from_rotvec(turns) * Rotation.from_rotvec(before)
    assert (Rotation.from_rotvec(both).inv() * expected).magnitude().max() < 1e-12
    assert (np.linalg.norm(both, axis=1) <= np.pi + 1e-12).all()
