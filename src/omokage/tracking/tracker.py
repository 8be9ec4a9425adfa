"""MAIN of tracking: a clip or a live camera in, a `FaceTrack` out.

track_clip      observe every frame -> who is it, and how does the skin look -> state of every frame -> smooth
                without lag
OnlineTracker   the same observation and the same fit, one frame at a time
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omokage.config import Progress, ProgressCallback, ignore_progress
from omokage.errors import NoFaceError
from omokage.geometry.camera import Camera, turned_further, yaw_pitch_roll
from omokage.media.clip import Frame
from omokage.threads import one_blas_thread
from omokage.tracking.face_track import BLENDSHAPES, FRAME_ARRAYS, FaceTrack, Subject
from omokage.tracking.fitting import FaceFit, FaceFitter
from omokage.tracking.head_axes import head_axes
from omokage.tracking.identity import key_frames, personalize, solve_identity
from omokage.tracking.landmarks import LandmarkBackend, MediaPipeLandmarks
from omokage.tracking.matting import MediaPipeMatte
from omokage.tracking.morphable import MorphableModel
from omokage.tracking.observation import Observation, ObservationLog, Observer
from omokage.tracking.photometric import STEPS, FaceCrop, SkinFitter, SkinPattern, learn_skin
from omokage.tracking.smoothing import CHANNELS, OneEuro, smooth_track
from omokage.tracking.sway import ZONE_COUNT, SwayModel

KEY_FRAMES = 32
PERSONALIZE_FRAMES = 400
IDENTITY_FRAMES = 2000
MIN_PERSONALIZE_FRAMES = 40
SKIN_FRAMES = 120
MIN_SKIN_FRAMES = 10
CALIBRATION_FRAMES = 30
MAX_WARM_JUMP = 0.15  # of the face's size: a face that moved farther is fitted afresh
LEAST_VISIBLE = 0.3  # of the face: with less, the skin is no guide and the landmarks decide alone
_NOBODY = np.zeros((64, 64, 3), dtype=np.uint8)
_TYPES = {
    "frame_index": np.int64,
    "time_s": np.float64,
    "is_tracked": np.bool_,
    "confidence": np.float32,
    "rotation": np.float64,
    "translation": np.float64,
}
_BAD_FIT = 0.03  # mean residual as a share of the face's size


@dataclass(frozen=True, slots=True)
class FaceState:
    """One row of a `FaceTrack`, with the same names, units and shapes (without the leading T)."""

    frame_index: int
    time_s: float
    is_tracked: bool
    confidence: float
    rotation: NDArray[np.float64]
    translation: NDArray[np.float64]
    expression: NDArray[np.float32]
    gaze: NDArray[np.float32]
    sway: NDArray[np.float32]
    landmarks: NDArray[np.float32]


@one_blas_thread()
def track_clip(
    frames: Iterable[Frame],
    *,
    subject: Subject | None = None,
    axes: NDArray[np.float64] | None = None,
    skin: SkinPattern | None = None,
    backend: LandmarkBackend | None = None,
    smooth: bool = True,
    on_progress: ProgressCallback = ignore_progress,
) -> FaceTrack:
    """Track one person through a clip. Frames are read once and not kept.

    subject, axes, skin: the person, if known from another recording; otherwise solved from this one.
    smooth: zero-phase smoothing.
    Raises NoFaceError when no frame shows a face.
    """
    observations, camera = _observe_all(frames, backend or MediaPipeLandmarks(), on_progress)
    seen = observations.seen
    if camera is None or not seen:
        raise NoFaceError(
            f"No face was found in any of the {len(observations)} frames; record one person, the face toward the "
            "camera, well lit and at least 100 pixels wide."
        )
    model, is_known = MorphableModel.load(), subject is not None
    on_progress(Progress("identity", 0, 2))
    if subject is None:
        # Two thousand frames say who it is; more would only cost memory.
        some = seen[:: -(-len(seen) // IDENTITY_FRAMES)]
        subject = identify(model, camera, np.array([observations.face(place)[0] for place in some]))
    axes = head_axes(subject) if axes is None else axes
    on_progress(Progress("identity", 1, 2))
    if skin is None and len(seen) >= MIN_SKIN_FRAMES:
        rows = np.unique(np.linspace(0, len(seen) - 1, SKIN_FRAMES).astype(int))
        faces = [observations.face(seen[row]) for row in rows]
        with_shape = not is_known and len(seen) >= MIN_PERSONALIZE_FRAMES
        fitter = FaceFitter(model, subject, camera)
        points, crops = np.array([points for points, _ in faces]), [crop for _, crop in faces]
        subject, skin = learn_skin(fitter, points, crops, with_shape=with_shape)
    on_progress(Progress("identity", 2, 2))
    estimator, total = StateEstimator(model, subject, camera, skin), len(observations)

    def states() -> Iterator[FaceState]:
        for done, observation in enumerate(observations.drain(), 1):
            yield estimator.step(observation)
            on_progress(Progress("fitting", done, total))

    track = _held_backwards(concatenate(states(), camera, subject, count=total))
    return replace(smooth_track(track) if smooth else track, axes=axes)


def identify(model: MorphableModel, camera: Camera, points: NDArray[np.floating]) -> Subject:
    """The person behind landmarks (N, 478, 3), from key frames, then corrected by all (or 400 of them)."""
    subject = solve_identity(model, camera, points[key_frames(points, KEY_FRAMES)])
    if len(points) < MIN_PERSONALIZE_FRAMES:
        return subject
    rows = np.unique(np.linspace(0, len(points) - 1, PERSONALIZE_FRAMES).astype(int))
    return personalize(model, camera, subject, points[rows])


class StateEstimator:
    """Observations in order -> states of a known person. Both offline and online tracking go through here.

    The landmarks give a state, the skin corrects it: what it corrected in the last frame is where it starts from.
    """

    def __init__(
        self, model: MorphableModel, subject: Subject, camera: Camera, skin: SkinPattern | None = None
    ) -> None:
        self._fitter = FaceFitter(model, subject, camera)
        self._sway = SwayModel(model, subject, camera)
        self._skin = SkinFitter(self._fitter, skin) if skin is not None else None
        self._last: FaceFit | None = None
        self._refined: FaceFit | None = None
        self._held = FaceState(
            frame_index=0,
            time_s=0.0,
            is_tracked=False,
            confidence=0.0,
            rotation=np.zeros(3),
            translation=np.array([0.0, 0.0, 60.0]),
            expression=np.zeros(len(BLENDSHAPES), dtype=np.float32),
            gaze=np.zeros((2, 2), dtype=np.float32),
            sway=np.zeros((ZONE_COUNT, 2), dtype=np.float32),
            landmarks=np.zeros((478, 3), dtype=np.float32),
        )

    def step(self, observation: Observation) -> FaceState:
        if observation.face is None:
            self._last = self._refined = None
            return replace(
                self._held,
                frame_index=observation.frame_index,
                time_s=observation.time_s,
                is_tracked=False,
                confidence=0.0,
            )
        points, size = observation.face.points, observation.face.size_px
        start = self._warm_start(points, size)
        fit = self._fitter.fit(points, start)
        if fit.residual_px > _BAD_FIT * size and self._last is not None:
            afresh = self._fitter.fit(points)
            fit = min(fit, afresh, key=lambda f: f.residual_px)
        state, visible = self._with_skin(observation, fit, is_warm=start is not None)
        self._last = fit
        self._held = FaceState(
            frame_index=observation.frame_index,
            time_s=observation.time_s,
            is_tracked=True,
            confidence=_closeness(fit, size) * visible,
            rotation=state.rotation,
            translation=state.translation,
            expression=state.expression.astype(np.float32),
            gaze=state.gaze.astype(np.float32),
            sway=self._sway.sway(observation.zones, state.rotation, state.translation),
            landmarks=points,
        )
        return self._held

    def _with_skin(self, observation: Observation, fit: FaceFit, *, is_warm: bool) -> tuple[FaceFit, float]:
        """The landmarks' state corrected by the picture, and how much of the face is visible."""
        if self._skin is None or observation.crop is None or observation.face is None:
            return fit, _turned_share(fit)
        view = observation.crop.view()
        start = fit
        if is_warm and self._last is not None and self._refined is not None:
            start = _carried(fit, self._last, self._refined)
        state = self._skin.refine(
            observation.face.points, view, start, STEPS if start is not fit else 2 * STEPS
        )
        visible = self._skin.visible_share(view, state)
        self._refined = state if visible > LEAST_VISIBLE else None
        return (state if visible > LEAST_VISIBLE else fit), visible

    def _warm_start(self, points: NDArray[np.float32], size: float) -> FaceFit | None:
        if self._last is None:
            return None
        jump = np.linalg.norm((points[:, :2] - self._held.landmarks[:, :2]).mean(axis=0))
        return self._last if jump < MAX_WARM_JUMP * size else None


class OnlineTracker:
    """Tracks a live camera, one frame at a time.

    subject, skin: the person, if known. What is not known is solved from the first `calibration_frames` frames
    with a face (once, about a second); until then the mean head stands for the subject, and the landmarks decide
    alone.
    """

    def __init__(
        self,
        *,
        subject: Subject | None = None,
        skin: SkinPattern | None = None,
        backend: LandmarkBackend | None = None,
        smooth: bool = True,
        calibration_frames: int = CALIBRATION_FRAMES,
    ) -> None:
        self._model = MorphableModel.load()
        self._backend, self._matting = backend or MediaPipeLandmarks(), MediaPipeMatte()
        self._smooth = smooth
        self._is_known = subject is not None
        self._calibration_frames = calibration_frames if skin is None else 0
        self._pattern = skin
        self.subject = subject or self._model.subject(np.zeros(len(self._model.id_basis)))
        self.camera: Camera | None = None
        self._start()

    def _start(self) -> None:
        self._observer = Observer(self._backend, self._matting, is_live=True)
        self._estimator: StateEstimator | None = None
        self._seen: list[tuple[NDArray[np.float32], FaceCrop]] = []
        self._filters = {name: OneEuro(channel) for name, channel in CHANNELS.items()}
        self.camera = None

    @contextmanager
    def streaming(self) -> Iterator[OnlineTracker]:
        """A scope for one stream: what is remembered of the last stream is forgotten at its start.

        Inside it linear algebra keeps to one core; `step` outside of it takes three times the processor time. What
        starts with a network's first picture, a quarter of a second, is done when the scope is entered.
        """
        self._start()
        self._backend.detect(_NOBODY)
        self._matting.matte(_NOBODY)
        with one_blas_thread():
            yield self

    def step(self, frame: Frame) -> FaceState:
        """The state of one frame. All frames of a stream must have the same size."""
        if self.camera is None or self._estimator is None:
            self.camera = Camera.for_image(frame.image.shape[1], frame.image.shape[0])
            self._estimator = StateEstimator(self._model, self.subject, self.camera, self._pattern)
        observation = self._observer.step(frame)
        if self._calibration_frames and observation.face is not None and observation.crop is not None:
            self._seen.append((observation.face.points, observation.crop))
            if len(self._seen) == self._calibration_frames:
                self._calibrate(self.camera)
        state = self._estimator.step(observation)
        return self._smoothed(state) if self._smooth else state

    def _calibrate(self, camera: Camera) -> None:
        points, crops = np.array([p for p, _ in self._seen]), [crop for _, crop in self._seen]
        if not self._is_known:
            rows = key_frames(points, KEY_FRAMES // 2)
            self.subject = solve_identity(self._model, camera, points[rows])
        fitter = FaceFitter(self._model, self.subject, camera)
        _, self._pattern = learn_skin(fitter, points, crops, with_shape=False)
        self._estimator = StateEstimator(self._model, self.subject, camera, self._pattern)
        self._calibration_frames, self._seen = 0, []

    def _smoothed(self, state: FaceState) -> FaceState:
        if not state.is_tracked:
            for low_pass in self._filters.values():
                low_pass.reset()
            return state
        values: dict[str, Any] = {}
        for name, low_pass in self._filters.items():
            raw = getattr(state, name)
            values[name] = low_pass.step(raw.astype(np.float64), state.time_s).astype(raw.dtype)
        return replace(state, **values)


def concatenate(
    states: Iterable[FaceState], camera: Camera, subject: Subject, *, count: int | None = None
) -> FaceTrack:
    """States in order -> a track. `count`: how many, for states that are not all there yet; none is kept."""
    if count is None:
        states = list(states)
        count = len(states)
    arrays: dict[str, Any] = {}
    for row, state in enumerate(states):
        for name in FRAME_ARRAYS:
            value = getattr(state, name)
            if row == 0:
                arrays[name] = np.empty((count, *np.shape(value)), _TYPES.get(name, np.float32))
            arrays[name][row] = value
    return FaceTrack(**arrays, camera=camera, subject=subject)


def _observe_all(
    frames: Iterable[Frame], backend: LandmarkBackend, on_progress: ProgressCallback
) -> tuple[ObservationLog, Camera | None]:
    observer, camera = Observer(backend), None
    observations = ObservationLog()
    for frame in frames:
        camera = camera or Camera.for_image(frame.image.shape[1], frame.image.shape[0])
        observations.add(observer.step(frame))
        on_progress(Progress("landmarks", len(observations), 0))
    return observations, camera


def _held_backwards(track: FaceTrack) -> FaceTrack:
    """Frames before the first face take its state."""
    first = int(np.argmax(track.is_tracked))
    for name in set(FRAME_ARRAYS) - {"frame_index", "time_s", "is_tracked", "confidence"}:
        values = getattr(track, name)
        values[:first] = values[first]
    return track


def _carried(fit: FaceFit, last: FaceFit, refined: FaceFit) -> FaceFit:
    """The landmarks' state with the correction that the skin made to their last one."""
    return replace(
        fit,
        rotation=turned_further(refined.rotation, turned_further(-last.rotation, fit.rotation)),
        translation=fit.translation + refined.translation - last.translation,
        expression=np.clip(fit.expression + refined.expression - last.expression, 0, 1),
    )


def _closeness(fit: FaceFit, size: float) -> float:
    """1 where the model meets the landmarks exactly."""
    return float(np.exp(-((fit.residual_px / (0.02 * size)) ** 2)))


def _turned_share(fit: FaceFit) -> float:
    """1 for a face seen from the front; falls beyond 45 degrees of yaw."""
    yaw = abs(np.degrees(yaw_pitch_roll(fit.rotation)[0]))
    return float(np.clip((75 - yaw) / 30, 0.1, 1))
