"""Whether two recordings show the same face, by the pattern of its skin (see `photometric`).

No network of faces is bundled whose weights may be used in a product. What the tracker learns of a person anyway tells
persons apart too: brows, lips, nostrils and creases at a thousand places of the face. How well is in docs/consent.md;
another day, beard or pair of glasses was not measured.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from omokage.errors import NoFaceError
from omokage.geometry.camera import Camera
from omokage.media.clip import Frame
from omokage.threads import one_blas_thread
from omokage.tracking.fitting import FaceFitter
from omokage.tracking.landmarks import LandmarkBackend, MediaPipeLandmarks
from omokage.tracking.morphable import MorphableModel
from omokage.tracking.observation import Observer
from omokage.tracking.photometric import LEAST_VARIANCE, SkinPattern, learn_skin
from omokage.tracking.tracker import MIN_SKIN_FRAMES, identify

# Between the most that two people had and the least of one; a single picture is less sure.
ALIKE, ALIKE_STILL = 0.65, 0.55


@one_blas_thread()
def skin_pattern(
    frames: Iterable[Frame], *, least: int = MIN_SKIN_FRAMES, backend: LandmarkBackend | None = None
) -> SkinPattern:
    """What the skin of the person in some dozen frames looks like, or in a single picture.

    Raises NoFaceError when fewer than `least` frames show a face.
    """
    observer, seen, camera = Observer(backend or MediaPipeLandmarks()), [], None
    for frame in frames:
        camera = camera or Camera.for_image(frame.image.shape[1], frame.image.shape[0])
        observation = observer.step(frame)
        if observation.face is not None and observation.crop is not None:
            seen.append((observation.face.points, observation.crop))
    if camera is None or len(seen) < least:
        raise NoFaceError(
            f"a face is seen in {len(seen)} pictures, {least} are needed to compare it with another"
        )
    model, points = MorphableModel.load(), np.array([points for points, _ in seen])
    fitter = FaceFitter(model, identify(model, camera, points), camera)
    return learn_skin(fitter, points, [crop for _, crop in seen], with_shape=False)[1]


def likeness(first: SkinPattern, second: SkinPattern) -> float:
    """Correlation of two patterns, -1 to 1; a point counts by how little it changed within either recording."""
    weight = 1 / (first.variance + second.variance + LEAST_VARIANCE)
    weight = weight / weight.sum()
    one, other = (pattern.mean - weight @ pattern.mean for pattern in (first, second))
    return float(weight @ (one * other) / np.sqrt((weight @ one**2) * (weight @ other**2) + 1e-12))
