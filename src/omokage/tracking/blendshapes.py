"""Sculpts the 52 named expressions on any neutral face of our mesh.

Every expression is given by where a few vertices (handles) go; the skin between them follows as a thin plate would,
and skin farther away than a radius stays. Lids and lips use the person's own gap, so that a blink and a closed mouth
close exactly. Units: cm in head space (x to the subject's left, y down, z backwards). Right is left, mirrored.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from omokage.tracking import face_regions as region
from omokage.tracking.face_track import BLENDSHAPES
from omokage.tracking.plate import Handles, PlateSolver

Float = NDArray[np.float64]

JAW_OPEN_RAD = 0.42  # jaw rotation of jawOpen = 1: about 3.6 cm between the lips
# How far each vertex of the outline follows the jaw, from the chin to below the ear.
_OVAL_JAW = (1.0, 1.0, 1.0, 0.97, 0.93, 0.83, 0.66, 0.42, 0.2, 0.06, 0.0)
# How far the lip columns (middle to corner) follow a pull at one corner; the other side follows by _FAR.
_NEAR = (0.15, 0.26, 0.42, 0.62, 0.85, 1.0)
_FAR = (0.15, 0.07, 0.0, 0.0, 0.0, 0.0)


def sculpt(neutral: Float, solver: PlateSolver) -> Float:
    """The 52 displacement fields (52, 468, 3) at weight 1, in the order of `BLENDSHAPES`."""
    face = _Face(neutral, solver)
    flipped = _Face(face.mirrored(neutral), solver)
    fields = {"jawOpen": face.jaw_open()}
    for name, build in _SYMMETRIC.items():
        fields[name] = build(face)
    for name, build in _ONE_SIDED.items():
        fields[f"{name}Left"] = build(face)
        fields[f"{name}Right"] = face.mirrored(build(flipped))
    fields["tongueOut"] = np.zeros_like(neutral)  # landmarks do not show the tongue
    return np.stack([fields[name] for name in BLENDSHAPES])


def jaw_motion(neutral: Float, points: Float) -> dict[str, Float]:
    """What happens to points (N, 3) fixed to the jaw bone, for the names that move it (weight 1): (N, 3) each."""
    ahead = np.tile([0.0, 0.0, -0.9], (len(points), 1))
    aside = np.tile([0.9, 0.0, 0.0], (len(points), 1))
    opened = jaw_rotation(points, hinge(neutral))
    return {"jawOpen": opened, "jawForward": ahead, "jawLeft": aside, "jawRight": -aside}


def hinge(neutral: Float) -> Float:
    """A point of the jaw's axis, which runs along x just before the ear."""
    ear = neutral[454]
    return np.array([0.0, ear[1] + 0.8, ear[2] + 1.5])


def jaw_rotation(points: Float, axis: Float) -> Float:
    """Displacement of points (N, 3) by jawOpen = 1 about the axis through `axis`."""
    cos, sin = np.cos(JAW_OPEN_RAD), np.sin(JAW_OPEN_RAD)
    turn = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    return np.asarray((points - axis) @ turn.T + axis - points)


class _Face:
    """One neutral face being sculpted: vocabulary for handles."""

    def __init__(self, neutral: Float, solver: PlateSolver) -> None:
        self.neutral = neutral
        self.solver = solver
        self.mirror = solver.mirror

    def mirrored(self, field: Float) -> Float:
        return field[self.mirror] * [-1.0, 1.0, 1.0]

    def spread(self, handles: Handles, radius: float, both: bool = False) -> Float:
        if both:
            for vertex, move in list(handles.items()):
                handles.setdefault(int(self.mirror[vertex]), move * [-1.0, 1.0, 1.0])
        return self.solver.spread(handles, radius)

    def gap(self, upper: int, lower: int) -> Float:
        """The vector from an upper to a lower vertex."""
        return np.asarray(self.neutral[lower] - self.neutral[upper])

    def jaw_weights(self) -> dict[int, float]:
        weights = dict(zip(region.OVAL, _OVAL_JAW, strict=False))
        weights |= dict.fromkeys(region.CHIN, 1.0)
        for row in region.LOWER_LIP:
            weights |= dict(zip(row, (1.0, 0.99, 0.95, 0.86, 0.68, 0.47), strict=True))
        for row in region.UPPER_LIP:
            weights |= dict(zip(row, (0.0, 0.01, 0.03, 0.1, 0.26, 0.47), strict=True))
        for vertex in (*region.NOSE_WING, 2, 280, 346, 347, 330, 352, *region.NOSE_RIDGE):
            weights[vertex] = 0.0
        return weights

    def with_jaw(self, move: Callable[[Float], Float]) -> Float:
        """A field that follows the jaw; `move` gives the bone's displacement of points (N, 3)."""
        weights = self.jaw_weights()
        rows = np.fromiter(weights, dtype=np.int64)
        moved = move(self.neutral[rows]) * np.fromiter(weights.values(), dtype=np.float64)[:, None]
        return self.spread(dict(zip(rows.tolist(), moved, strict=True)), 9.0, both=True)

    def jaw_open(self) -> Float:
        return self.with_jaw(lambda points: jaw_rotation(points, hinge(self.neutral)))

    def lips(
        self, move: Callable[[float, float], tuple[float, float, float]], rows: tuple[tuple[int, ...], ...]
    ) -> Handles:
        """Handles for a lip. `move(column, row)`: column 0 middle .. 1 corner, row 0 outer .. 1 inner edge."""
        return {
            vertex: np.array(move(column / 5, row / 3))
            for row, line in enumerate(rows)
            for column, vertex in enumerate(line)
        }

    def corner_pull(self, move: tuple[float, float, float], near: tuple[float, ...] = _NEAR) -> Handles:
        """Both lips pulled at the left corner."""
        handles: Handles = {}
        for line in (*region.UPPER_LIP, *region.LOWER_LIP):
            for column, vertex in enumerate(line):
                handles[vertex] = np.array(move) * near[column]
                if column:
                    handles[int(self.mirror[vertex])] = np.array(move) * [1, 1, 1] * _FAR[column]
        return handles

    def points(self, vertices: tuple[int, ...], x: float, y: float, z: float) -> Handles:
        return {vertex: np.array([x, y, z]) for vertex in vertices}

    def lids(self, upper: float, lower: float, ring: float = 0.45) -> Handles:
        """Upper and lower lid moved by shares of the gap towards each other (1 + 0: closed on the lower lid)."""
        handles: Handles = {vertex: np.zeros(3) for vertex in (*region.EYE_CORNERS, *region.EYE_RING_CORNERS)}
        lines = zip(
            region.UPPER_LID, region.LOWER_LID, region.UPPER_LID_RING, region.LOWER_LID_RING, strict=True
        )
        for top, bottom, top_ring, bottom_ring in lines:
            gap = self.gap(top, bottom)
            handles[top], handles[bottom] = upper * gap, -lower * gap
            handles[top_ring], handles[bottom_ring] = ring * upper * gap, -0.5 * lower * gap
        for vertex in (*region.BROW_LOWER, *region.LOWER_LID_BAG):
            handles[vertex] = np.zeros(3)
        return handles


def _mouth_close(face: _Face) -> Float:
    """Closes the lips against jawOpen = 1: the chin stays down, the lower lip comes up to the upper one."""
    opened = face.neutral + face.jaw_open()
    handles: Handles = dict.fromkeys((*region.CHIN[:3], *region.OVAL[:9], *region.NOSE_WING, 2), np.zeros(3))
    for upper_row, lower_row in zip(region.UPPER_LIP, region.LOWER_LIP, strict=True):
        for column in range(6):
            top, bottom = region.UPPER_LIP[3][column], region.LOWER_LIP[3][column]
            gap = opened[bottom] - opened[top] - face.gap(top, bottom)
            handles[lower_row[column]] = -0.72 * gap
            handles[upper_row[column]] = 0.28 * gap if column < 5 else -0.3 * gap
    return face.spread(handles, 5.0, both=True)


def _funnel(face: _Face) -> Float:
    handles = face.lips(
        lambda c, r: (-0.5 * c, -0.38 * (1 - c) * (0.6 + 0.4 * r), -0.75 + 0.25 * c), region.UPPER_LIP
    )
    handles |= face.lips(
        lambda c, r: (-0.5 * c, 0.42 * (1 - c) * (0.6 + 0.4 * r), -0.75 + 0.25 * c), region.LOWER_LIP
    )
    return face.spread(handles, 3.2, both=True)


def _pucker(face: _Face) -> Float:
    def move(sign: float) -> Callable[[float, float], tuple[float, float, float]]:
        return lambda c, r: (-1.05 * c, sign * 0.12 * (1 - c) * (1 - r), -0.85 + 0.35 * c)

    handles = face.lips(move(-1.0), region.UPPER_LIP) | face.lips(move(1.0), region.LOWER_LIP)
    return face.spread(handles, 3.4, both=True)


def _mouth_aside(face: _Face) -> Float:
    lines = (*region.UPPER_LIP, *region.LOWER_LIP)
    handles = {
        int(v): np.array([0.85, -0.05 * side * c, 0.0])
        for line in lines
        for c, vertex in enumerate(line)
        for side, v in ((1, vertex), (-1, face.mirror[vertex]))
    }
    return face.spread(handles, 3.4)


def _smile(face: _Face) -> Float:
    handles = face.corner_pull((0.85, -0.75, 0.55))
    handles |= face.points((425, 280), 0.12, -0.32, -0.06) | face.points((347, 330), 0.05, -0.2, -0.05)
    handles |= face.points((426, 411), 0.35, -0.45, -0.02) | face.points((358, 279), 0.1, -0.1, 0.0)
    return face.spread(handles, 3.2)


def _roll(sign: float, rows: tuple[tuple[int, ...], ...]) -> Callable[[_Face], Float]:
    def build(face: _Face) -> Float:
        def move(column: float, row: float) -> tuple[float, float, float]:
            share = 1 - column**2
            return 0.0, sign * share * (0.5 - 0.25 * row), share * (0.15 + 0.45 * row)

        return face.spread(face.lips(move, rows) | _still_lip(rows), 2.0, both=True)

    return build


def _still_lip(rows: tuple[tuple[int, ...], ...]) -> Handles:
    """The other lip, not moving."""
    other = region.LOWER_LIP if rows is region.UPPER_LIP else region.UPPER_LIP
    return {vertex: np.zeros(3) for line in other for vertex in line[:5]}


def _shrug_lower(face: _Face) -> Float:
    handles = face.lips(lambda c, r: (0.0, -0.5 * (1 - c**2), -0.25 * (1 - c)), region.LOWER_LIP)
    handles |= face.lips(lambda c, r: (0.0, -0.22 * (1 - c**2), -0.1 * (1 - c)), region.UPPER_LIP)
    handles |= face.points((18, 200, 199), 0.0, -0.42, 0.0) | face.points((175,), 0.0, -0.25, 0.0)
    return face.spread(handles, 2.5, both=True)


def _shrug_upper(face: _Face) -> Float:
    handles = face.lips(lambda c, r: (0.0, -0.42 * (1 - c**2), -0.2 * (1 - c)), region.UPPER_LIP)
    handles |= face.lips(lambda c, r: (0.0, -0.3 * (1 - c**2), 0.0), region.LOWER_LIP)
    return face.spread(handles, 2.0, both=True)


def _half_lip(
    face: _Face, rows: tuple[tuple[int, ...], ...], move: tuple[float, float, float], edge: float
) -> Handles:
    """One lip moved on the left half; `edge`: how much of it the outer edge does."""
    shares = (0.6, 0.95, 1.0, 0.8, 0.4, 0.0)
    far = (0.6, 0.25, 0.08, 0.0, 0.0, 0.0)
    handles = _still_lip(rows)
    handles |= {int(face.mirror[vertex]): still for vertex, still in handles.items()}
    for row, line in enumerate(rows):
        amount = np.array(move) * (edge + (1 - edge) * row / 3)
        for column, vertex in enumerate(line):
            handles[int(face.mirror[vertex])] = amount * far[column]
            handles[vertex] = amount * shares[column]
    return handles


def _press(face: _Face) -> Float:
    handles = _half_lip(face, region.LOWER_LIP, (0.0, -0.28, 0.12), 1.0)
    upper = _half_lip(face, region.UPPER_LIP, (0.0, 0.28, 0.12), 1.0)
    lower_rows = {int(m) for line in region.LOWER_LIP for v in line for m in (v, face.mirror[v])}
    handles |= {v: move for v, move in upper.items() if v not in lower_rows}
    for vertex in (*region.UPPER_LIP[3][:5], *region.LOWER_LIP[3][:5]):  # the line between the lips stays
        handles[vertex] = handles[vertex] * [1.0, 0.1, 1.0]
        twin = int(face.mirror[vertex])
        if twin != vertex:
            handles[twin] = handles[twin] * [1.0, 0.1, 1.0]
    return face.spread(handles, 1.8)


def _lower_down(face: _Face) -> Float:
    handles = _half_lip(face, region.LOWER_LIP, (0.08, 0.75, 0.1), 0.75)
    return face.spread(handles, 2.2)


def _upper_up(face: _Face) -> Float:
    handles = _half_lip(face, region.UPPER_LIP, (0.05, -0.65, 0.08), 0.75)
    handles |= face.points((358, 327, 426), 0.03, -0.2, 0.0)
    return face.spread(handles, 2.2)


# Outer brow motion along the brow: most at the arch, not at the tail.
_BROW = (0.0, 0.25, 0.5, 0.75, 1.0)
_ARCH = (0.05, 0.45, 0.9, 1.0, 0.8)


def _brow(inner: float, outer: float, aside: float) -> Callable[[_Face], Float]:
    """The brow moved along y: `inner` and `outer` end in cm, with `aside` cm along x at the inner end."""

    def build(face: _Face) -> Float:
        handles: Handles = {
            v: np.zeros(3) for v in (*region.UPPER_LID, *region.EYE_CORNERS, *region.OVAL[12:])
        }
        for line, share in (
            (region.BROW_UPPER, 1.0),
            (region.BROW_LOWER, 1.0),
            (region.FOREHEAD, 0.55),
            (region.UPPER_LID_CREASE[1:6], 0.3),
        ):
            for position, vertex in zip(np.linspace(0, 1, 5), line, strict=True):
                along = inner * (1 - position) ** 1.3 + outer * float(np.interp(position, _BROW, _ARCH))
                handles[vertex] = share * np.array([aside * (1 - position), along, -0.05 * abs(along)])
        middle = 0.35 * inner
        handles |= face.points((9, 8), 0.0, 0.6 * middle, 0.0)
        return face.spread(handles, 2.6)

    return build


def _brow_inner_up(face: _Face) -> Float:
    left = _brow(-0.95, -0.05, 0.0)(face)
    return left + face.mirrored(left)


def _cheek_puff(face: _Face) -> Float:
    handles = face.points((427, 411, 436, 434), 0.75, 0.0, -0.55) | face.points((425, 352), 0.45, 0.0, -0.3)
    handles |= face.lips(lambda c, r: (0.0, 0.0, -0.12), region.UPPER_LIP)
    handles |= face.lips(lambda c, r: (0.0, 0.0, -0.12), region.LOWER_LIP)
    return face.spread(handles, 3.0, both=True)


def _cheek_squint(face: _Face) -> Float:
    handles = face.points((280, 347, 330), 0.03, -0.38, -0.1) | face.points(
        (425, 352, 346), 0.03, -0.25, -0.08
    )
    handles |= {vertex: np.array([0.0, -0.16, -0.03]) for vertex in region.LOWER_LID_BAG[1:6]}
    handles |= {v: 0.12 * -face.gap(t, v) for t, v in zip(region.UPPER_LID, region.LOWER_LID, strict=True)}
    return face.spread(handles, 2.2)


def _nose_sneer(face: _Face) -> Float:
    handles = face.points((358, 294, 327, 278, 331), 0.06, -0.34, 0.03) | face.points(
        (429, 420, 360), 0.02, -0.3, 0.0
    )
    handles |= face.points((437, 343, 412), 0.0, -0.14, -0.04)
    handles |= {
        v: np.array([0.0, -0.16 * s, 0.0])
        for v, s in zip(region.UPPER_LIP[0], (0.3, 0.8, 1, 0.9, 0.4, 0), strict=True)
    }
    handles |= {v: np.array([0.0, 0.18, 0.0]) for v in (285, 336)}
    return face.spread(handles, 1.8)


def _jaw_side(face: _Face) -> Float:
    weights = face.jaw_weights()
    handles: Handles = {}
    for vertex, weight in weights.items():
        for v in (vertex, int(face.mirror[vertex])):
            handles[v] = np.array([0.9 * weight, 0.0, 0.0])
    return face.spread(handles, 9.0)


_SYMMETRIC: dict[str, Callable[[_Face], Float]] = {
    "jawForward": lambda face: face.with_jaw(lambda points: np.tile([0.0, 0.0, -0.9], (len(points), 1))),
    "mouthClose": _mouth_close,
    "mouthFunnel": _funnel,
    "mouthPucker": _pucker,
    "mouthRollLower": _roll(-1.0, region.LOWER_LIP),
    "mouthRollUpper": _roll(1.0, region.UPPER_LIP),
    "mouthShrugLower": _shrug_lower,
    "mouthShrugUpper": _shrug_upper,
    "browInnerUp": _brow_inner_up,
    "cheekPuff": _cheek_puff,
}

_ONE_SIDED: dict[str, Callable[[_Face], Float]] = {
    "jaw": _jaw_side,
    "mouth": _mouth_aside,
    "eyeBlink": lambda face: face.spread(face.lids(0.93, 0.07), 2.2),
    "eyeLookDown": lambda face: face.spread(face.lids(0.5, -0.12), 2.2),
    "eyeLookUp": lambda face: face.spread(face.lids(-0.18, 0.08), 2.2),
    "eyeLookIn": lambda face: face.spread({v: np.array([-0.05, 0, 0]) for v in (386, 374)}, 0.9),
    "eyeLookOut": lambda face: face.spread({v: np.array([0.05, 0, 0]) for v in (386, 374)}, 0.9),
    "eyeSquint": lambda face: face.spread(
        face.lids(0.1, 0.28) | face.points((253, 450), 0.0, -0.12, -0.03), 2.4
    ),
    "eyeWide": lambda face: face.spread(face.lids(-0.32, -0.06, 0.6), 2.2),
    "mouthSmile": _smile,
    "mouthFrown": lambda face: face.spread(face.corner_pull((0.12, 0.75, 0.1)), 2.8),
    "mouthDimple": lambda face: face.spread(face.corner_pull((0.5, -0.08, 0.45)), 2.4),
    "mouthStretch": lambda face: face.spread(face.corner_pull((0.8, 0.4, 0.4)), 3.4),
    "mouthPress": _press,
    "mouthLowerDown": _lower_down,
    "mouthUpperUp": _upper_up,
    "browDown": _brow(0.6, 0.25, -0.22),
    "browOuterUp": _brow(0.0, -0.85, 0.0),
    "cheekSquint": _cheek_squint,
    "noseSneer": _nose_sneer,
}
