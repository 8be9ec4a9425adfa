"""Sway: what hair and shoulders do beyond following the head.

Zones lie on rings around the face. Dense optical flow (Kroeger et al. 2016) from an anchor picture to each picture,
begun with the flow of the picture before, says where each zone went: measured against the anchor, so nothing drifts.
What the head's own motion explains is then taken off. A zone off the person, out of the picture or no longer alike
(a hand before it) takes the sway of those around it.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from omokage.geometry.camera import Camera, rotation_matrix
from omokage.geometry.rings import head_share, rings, surface
from omokage.media.clip import Image
from omokage.tracking.face_track import Subject
from omokage.tracking.landmarks import Landmarks
from omokage.tracking.matting import MatteBackend, MediaPipeMatte
from omokage.tracking.morphable import MorphableModel

Float = NDArray[np.float64]
Float32 = NDArray[np.float32]

ZONE_RINGS = (1.06, 1.2, 1.4, 1.7, 2.2, 3.0, 4.5)
ZONES_AROUND = 18
ZONE_COUNT = len(ZONE_RINGS) * ZONES_AROUND

WORK_SIDE_PX = 256
REACH_IN_FACE_HEIGHTS = 2.2  # of what is followed, from the middle of the face in each direction
SMOOTH_PX = 1.25  # in a picture of half that side
PATCH_PX, PATCH_STEP_PX = 15, 2  # side of what is compared at a zone, and the way between its samples
NOISE = 3.0  # grey levels: a flatter patch is not compared
UNLIKE, ALIKE = 0.05, 0.25  # correlation of a patch with its anchor: covered, seen
NEWEST = 0.25  # weight of the newest picture in that correlation
LEAST_CERTAINTY = 0.05
LEAST_ALIKE = 0.25  # of the whole person: below it a new anchor is taken
RETRY_FRAMES = 25  # after so many, the first anchor is tried again
FILL_ROUNDS = 12


@dataclass(frozen=True, slots=True)
class ZonePlaces:
    """Where the zones are in one picture.

    pixels, origin: (Z, 2), in this picture and in the first with a face.  certainty: (Z,) in [0, 1].
    """

    pixels: Float32
    certainty: Float32
    origin: Float32

    @classmethod
    def unknown(cls) -> ZonePlaces:
        """Nothing is known: no sway comes of it."""
        nowhere = np.zeros((ZONE_COUNT, 2), dtype=np.float32)
        return cls(nowhere, nowhere[:, 0], nowhere)


@dataclass(frozen=True)
class _Window:
    """The part of the pictures that is followed, as a grey picture of at most `WORK_SIDE_PX`."""

    left: int
    top: int
    right: int
    bottom: int
    scale: float

    @classmethod
    def around(cls, outline: Float, width: int, height: int) -> _Window:
        middle, reach = outline.mean(axis=0), REACH_IN_FACE_HEIGHTS * np.ptp(outline[:, 1])
        left, top = np.clip(np.floor(middle - reach), 0, None).astype(int)
        right, bottom = np.minimum(np.ceil(middle + reach), (width, height)).astype(int)
        longer = max(right - left, bottom - top)
        return cls(int(left), int(top), int(right), int(bottom), min(1.0, WORK_SIDE_PX / longer))

    def cut(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        part = np.ascontiguousarray(image[self.top : self.bottom, self.left : self.right])
        grey = cv2.cvtColor(part, cv2.COLOR_RGB2GRAY) if part.ndim == 3 else part
        size = (round(part.shape[1] * self.scale), round(part.shape[0] * self.scale))
        return np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)

    def to_work(self, pixels: Float32) -> Float32:
        """Pixels of the picture -> of the work picture, whole numbers at the centers of pixels."""
        return ((pixels - (self.left, self.top)) * self.scale - 0.5).astype(np.float32)


@dataclass(frozen=True, slots=True)
class _Seen:
    """A picture seen from an anchor.

    grey: the work picture.  flow: from the anchor to it.  places: by that flow.  alike: (Z,), how much each zone looks
    as in the anchor, from -1 to 1.
    """

    grey: NDArray[np.uint8]
    places: ZonePlaces
    flow: Float32
    alike: Float32


@dataclass
class _Anchor:
    """A picture that others are compared with.

    grey: the work picture (H, W).  places: of the zones in it.  person: its matte at half the size.  share (Z,): of
    the person in the smoothing around each zone.  patches (Z, P): what is seen there.
    """

    grey: NDArray[np.uint8]
    places: ZonePlaces
    person: Float32
    share: Float32
    patches: Float32

    def likeness(self, alike: Float32) -> float:
        """Of a whole picture, from that of its zones (Z,): 1 is the anchor itself, or a person without any pattern."""
        itself = float(np.square(self.patches).sum(axis=1) @ self.places.certainty)
        return float(alike @ self.places.certainty) / itself if itself > 1 else 1.0


class ZoneTracker:
    """Call `step` for every picture in order; all of one size. `begin` and `find_person` before it save time."""

    def __init__(self, matting: MatteBackend | None = None) -> None:
        self._matting = matting
        self._oval = MorphableModel.load().face_oval
        self._follow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        self._window: _Window | None = None
        self._anchors: list[_Anchor] = []
        self._flow: Float32 | None = None
        self._age = 0
        self._alike = np.ones(ZONE_COUNT)
        self._helper = ThreadPoolExecutor(1, thread_name_prefix="hair and shoulders")
        self._coming: Future[_Seen] | None = None
        self._matte: Future[NDArray[np.float32]] | None = None

    def find_person(self, image: Image) -> None:
        """Start to separate the person of the picture that the next `step` is for, on another thread, if it is the
        first."""
        if self._window is None:
            self._matte = self._helper.submit(self._matted, image)

    def begin(self, image: Image) -> None:
        """Start to look at the picture that the next `step` is for, on another thread: no face is needed for it."""
        if self._window is not None:
            self._coming = self._helper.submit(self._seen, image)

    def step(self, image: Image, face: Landmarks | None) -> ZonePlaces:
        """Where the zones of the first picture with a face have gone."""
        seen = self._coming.result() if self._coming is not None else None
        self._coming = None
        if face is None:
            self._flow = None
            return ZonePlaces.unknown()
        if self._window is None:
            outline = face.points[self._oval, :2].astype(np.float64)
            self._window = _Window.around(outline, image.shape[1], image.shape[0])
            around = rings(_outline(face.points, self._oval), ZONE_RINGS)
            first = np.asarray(around.reshape(-1, 2), dtype=np.float32)
            start = ZonePlaces(first, np.ones(len(first), dtype=np.float32), first)
            return self._anchored(image, self._window.cut(image), start)
        seen = seen or self._seen(image)
        self._age += 1
        if len(self._anchors) > 1 and self._age % RETRY_FRAMES == 0:
            again = self._seen_from(self._anchors[0], seen.grey, None)
            if self._anchors[0].likeness(again.alike) > LEAST_ALIKE:
                del self._anchors[1:]
                seen = again
        self._flow = seen.flow
        if self._anchors[-1].likeness(seen.alike) < LEAST_ALIKE:
            return self._anchored(image, seen.grey, seen.places)
        # A hand stays for a while; a patch that is unlike for a moment only would make its zone flicker.
        self._alike = (1 - NEWEST) * self._alike + NEWEST * seen.alike
        share = np.clip((self._alike - UNLIKE) / (ALIKE - UNLIKE), LEAST_CERTAINTY, 1)
        return replace(seen.places, certainty=(seen.places.certainty * share).astype(np.float32))

    def _anchored(self, image: Image, grey: NDArray[np.uint8], places: ZonePlaces) -> ZonePlaces:
        """The picture becomes the anchor; the first one stays, the others are forgotten."""
        assert self._window is not None
        matte = self._matte.result() if self._matte is not None else self._matted(image)
        self._matte = None
        alpha = self._window.cut(np.round(matte * 255).astype(np.uint8))
        person = alpha.astype(np.float32) / np.float32(255)
        half = np.asarray(cv2.resize(person, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), np.float32)
        at = self._window.to_work(places.pixels)
        share = _read(_blurred(half), 0.5 * at - 0.25)
        inside = ((at > 1) & (at < np.array(grey.shape[::-1]) - 2)).all(axis=1)
        certainty = np.asarray(share * inside, dtype=np.float32)
        del self._anchors[1:]
        anchor = replace(places, certainty=certainty)
        self._anchors.append(_Anchor(grey, anchor, half, share, _patches(grey, at)))
        self._flow, self._age, self._alike = None, 0, np.ones(ZONE_COUNT)
        return replace(places, certainty=certainty * places.certainty)

    def _matted(self, image: Image) -> NDArray[np.float32]:
        self._matting = self._matting or MediaPipeMatte()
        return self._matting.matte(image)

    def _seen(self, image: Image) -> _Seen:
        """A picture seen from the newest anchor, begun with the flow of the picture before."""
        assert self._window is not None
        return self._seen_from(self._anchors[-1], self._window.cut(image), self._flow)

    def _seen_from(self, anchor: _Anchor, grey: NDArray[np.uint8], start: Float32 | None) -> _Seen:
        assert self._window is not None
        if start is None:  # without one OpenCV begins with what it has left of the picture before
            start = np.zeros((*grey.shape, 2), dtype=np.float32)
        flow: Float32 = self._follow.calc(anchor.grey, grey, start)  # type: ignore[assignment]
        at = self._window.to_work(anchor.places.pixels)
        # Smoothed within the person, at half the resolution.
        half = cv2.resize(flow, anchor.person.shape[::-1], interpolation=cv2.INTER_AREA)
        of_person = np.asarray(half * anchor.person[..., None], dtype=np.float32)
        moved = _read(_blurred(of_person), 0.5 * at - 0.25) / (anchor.share[:, None] + np.float32(1e-3))
        alike = (_patches(grey, at + moved) * anchor.patches).sum(axis=1)
        pixels = np.asarray(anchor.places.pixels + moved / self._window.scale, dtype=np.float32)
        return _Seen(grey, replace(anchor.places, pixels=pixels), flow, alike)


class SwayModel:
    """Takes the head's own motion off the places of the zones. For one subject and camera."""

    def __init__(self, model: MorphableModel, subject: Subject, camera: Camera) -> None:
        outline = _outline(subject.neutral, model.face_oval)
        self._points = surface(outline, ZONE_RINGS).reshape(-1, 3)
        self._share = head_share(rings(outline, ZONE_RINGS), outline, ZONE_RINGS).reshape(-1, 1)
        self._head_width = float(np.ptp(outline[:, 0]))
        self._camera = camera

    def sway(self, zones: ZonePlaces, rotation: Float, translation: Float) -> Float32:
        """(Z, 2), shift in head widths: 0 where a zone does as the head does (near it), or stands still (far away)."""
        head_px = self._camera.focal_px * self._head_width / translation[2]
        beyond = zones.pixels - self.expected(zones.origin, rotation, translation)
        return _filled(beyond / head_px, zones.certainty)

    def expected(self, origin: NDArray[np.floating], rotation: Float, translation: Float) -> Float:
        """Where a head in this pose takes the zones that were at `origin` (Z, 2): pixels (Z, 2)."""
        posed = self._points @ rotation_matrix(rotation).T + translation
        by_head = self._camera.project(posed)[:, :2]
        return np.asarray(self._share * by_head + (1 - self._share) * origin)


def similar_shoulders(shift: Float, *, log_scale: Float, roll: Float) -> Float:
    """The sway (T, Z, 2) of shoulders that move as one, hair and neck less and less the nearer they are to the head.

    shift: (T, 2) head widths.  log_scale, roll (clockwise, radians): (T,), about the middle of what moves.
    """
    model = MorphableModel.load()
    outline = _outline(model.neutral, model.face_oval)
    places = rings(outline, ZONE_RINGS)
    share = 1 - head_share(places, outline, ZONE_RINGS).reshape(-1, 1)
    flat = places.reshape(-1, 2) / np.ptp(outline[:, 0])
    flat = flat - (share * flat).sum(axis=0) / share.sum()
    cos, sin = np.exp(log_scale) * np.cos(roll), np.exp(log_scale) * np.sin(roll)
    turn = np.stack([np.stack([cos, -sin], axis=-1), np.stack([sin, cos], axis=-1)], axis=1)
    return np.asarray(share * (flat @ turn.transpose(0, 2, 1) - flat + shift[:, None]))


def _outline(points: NDArray[np.floating], oval: NDArray[np.integer]) -> Float:
    """The places of the face's outline (`ZONES_AROUND`, 3) that zones lie outwards of, from all points (V, 3)."""
    return np.asarray(points[oval[:: len(oval) // ZONES_AROUND]], dtype=np.float64)


def _blurred(plane: Float32) -> Float32:
    return np.asarray(cv2.GaussianBlur(plane, (0, 0), SMOOTH_PX), dtype=np.float32)


def _read(plane: Float32, at: Float32) -> Float32:
    """Values of a plane (H, W) or (H, W, C) at places (N, 2) -> (N,) or (N, C)."""
    x, y = np.ascontiguousarray(at[:, 0]), np.ascontiguousarray(at[:, 1])
    read = cv2.remap(plane, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(read, dtype=np.float32).reshape(len(at), *plane.shape[2:])


def _patches(grey: NDArray[np.uint8], at: Float32) -> Float32:
    """What a work picture shows around places (N, 2): (N, P), mean 0 and length 1 (less where it is flat)."""
    across = np.arange(0, PATCH_PX, PATCH_STEP_PX, dtype=np.float32) - PATCH_PX // 2
    window = np.stack(np.meshgrid(across, across), axis=-1).reshape(-1, 2)
    patches = _read(grey.astype(np.float32), (at[:, None] + window).reshape(-1, 2)).reshape(len(at), -1)
    patches -= patches.mean(axis=1, keepdims=True)
    length = np.sqrt(np.square(patches).sum(axis=1, keepdims=True) + np.float32(len(window) * NOISE**2))
    return np.asarray(patches / length, dtype=np.float32)


def _filled(sway: Float, certainty: Float32) -> Float32:
    """Smoothed over neighboring zones; where little is known, taken from what is known farther around."""
    known = np.column_stack([sway * certainty[:, None], certainty])
    near, wide = _spreading(1) @ known, _spreading(1 + FILL_ROUNDS) @ known
    trust = near[:, 2:] / (near[:, 2:] + 0.05)
    result = trust * near[:, :2] / (near[:, 2:] + 1e-6) + (1 - trust) * wide[:, :2] / (wide[:, 2:] + 1e-3)
    return np.asarray(result, dtype=np.float32)


@cache
def _spreading(rounds: int) -> Float:
    """So many steps of smoothing along the rings and across them, as a matrix (Z, Z)."""
    values = np.eye(ZONE_COUNT).reshape(len(ZONE_RINGS), ZONES_AROUND, ZONE_COUNT)
    for _ in range(rounds):
        along = (np.roll(values, 1, axis=1) + 2 * values + np.roll(values, -1, axis=1)) / 4
        inner, outer = np.concatenate([along[:1], along[:-1]]), np.concatenate([along[1:], along[-1:]])
        values = (inner + 2 * along + outer) / 4
    return values.reshape(ZONE_COUNT, ZONE_COUNT)
