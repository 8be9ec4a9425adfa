"""Finds faces and their 478 landmarks in pictures; the default backend is the network inside the mediapipe package.

Another landmark network can replace it: it has to be a `LandmarkBackend` that speaks MediaPipe's numbering.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import warnings
import weakref
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from omokage.errors import MissingDependencyError
from omokage.media.clip import Image

_FACE_MESH_GRAPH = "modules/face_landmark/face_landmark_front_cpu.binarypb"
MAX_SIDE_PX = 640  # pictures are reduced to this before detection: the network looks at 256 pixels anyway


@dataclass(frozen=True, slots=True)
class Landmarks:
    """One face: `points` float32 (478, 3), x and y in pixels of the picture, z towards the back at the same scale."""

    points: NDArray[np.float32]

    @property
    def size_px(self) -> float:
        """The larger side of the face's box."""
        return float(np.ptp(self.points[:, :2], axis=0).max())


class LandmarkBackend(Protocol):
    """Detects faces. In a stream, pictures follow each other in time and a face may be followed between them."""

    def detect(self, image: Image) -> list[Landmarks]:
        """Faces in a picture uint8 (H, W, 3) RGB, the surest first; empty when there is none."""
        ...

    def reset(self) -> None:
        """Forget the stream: the next picture has nothing to do with the last."""
        ...


class MediaPipeLandmarks:
    """MediaPipe's face mesh with refined lips, eyes and irises.

    max_faces: how many to look for. is_stream: follow faces from picture to picture, which is faster and steadier;
    otherwise every picture stands alone. Raises MissingDependencyError when mediapipe cannot be loaded.
    """

    def __init__(self, *, max_faces: int = 1, is_stream: bool = True, min_confidence: float = 0.5) -> None:
        self._sides = {"num_faces": max_faces, "with_attention": True, "use_prev_landmarks": is_stream}
        self._min_confidence = min_confidence
        self._network: Any = None
        self._is_starting = True
        load_solution("face_mesh")

    def detect(self, image: Image) -> list[Landmarks]:
        height, width = image.shape[:2]
        # The native graph starts, and talks, at the first picture after a start or a reset, and at the first face.
        with quiet() if self._is_starting else contextlib.nullcontext():
            if self._network is None:
                self._network = closed_with(self, _face_mesh(self._sides, self._min_confidence))
            answer = self._network.process({"image": reduced(image)})
        self._is_starting = self._is_starting and not answer.multi_face_landmarks
        size = np.array([width, height, width], dtype=np.float32)
        return [
            Landmarks(np.array([(p.x, p.y, p.z) for p in face.landmark], dtype=np.float32) * size)
            for face in answer.multi_face_landmarks or []
        ]

    def reset(self) -> None:
        if self._network is not None:
            with quiet():
                self._network.reset()
            self._is_starting = True


def _face_mesh(sides: Mapping[str, Any], min_confidence: float) -> Any:
    """MediaPipe's `FaceMesh`, its graph run by the thread that asks: handing each node to a pool of threads took a
    quarter of the time (5.8 instead of 4.4 ms), and the other core was busy with it."""
    load_solution("face_mesh")
    from mediapipe.framework.calculator_pb2 import CalculatorGraphConfig
    from mediapipe.python.solution_base import SolutionBase

    graph = CalculatorGraphConfig()
    graph.ParseFromString((files("mediapipe") / _FACE_MESH_GRAPH).read_bytes())
    graph.executor.add().type = "ApplicationThreadExecutor"
    detection = (
        "facedetectionshortrangecpu__facedetectionshortrange__facedetection__TensorsToDetectionsCalculator"
    )
    return SolutionBase(
        graph_config=graph,
        side_inputs=sides,
        calculator_params={
            f"{detection}.min_score_thresh": min_confidence,
            "facelandmarkcpu__ThresholdingCalculator.threshold": min_confidence,
        },
        outputs=["multi_face_landmarks"],
    )


class FaceCounter:
    """Counts faces in single pictures, small and off-center ones too (the mesh network needs them near and large)."""

    def __init__(self, *, min_confidence: float = 0.5) -> None:
        self._min_confidence = min_confidence
        self._network: Any = None
        load_solution("face_detection")

    def count(self, image: Image) -> int:
        """How many faces a picture uint8 (H, W, 3) shows."""
        with quiet() if self._network is None else contextlib.nullcontext():
            if self._network is None:
                full_range = load_solution("face_detection").FaceDetection(
                    model_selection=1, min_detection_confidence=self._min_confidence
                )
                self._network = closed_with(self, full_range)
            answer = self._network.process(reduced(image))
        return len(answer.detections or [])


def count_faces(image: Image) -> int:
    """How many faces a single picture shows. Keep a `FaceCounter` for many pictures."""
    return FaceCounter().count(image)


def reduced(image: Image) -> Image:
    """The picture with its longer side at most `MAX_SIDE_PX`, contiguous."""
    scale = MAX_SIDE_PX / max(image.shape[:2])
    if scale < 1:
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    return np.ascontiguousarray(image)


def closed_with(owner: object, network: Any) -> Any:
    """A network of mediapipe that gives its memory back when its owner goes.

    By itself none ever does: every landmark network that was started kept 36 MB.
    """
    weakref.finalize(owner, network.close).atexit = False
    return network


def load_solution(name: str) -> Any:
    """One module of mediapipe's solutions. Raises MissingDependencyError with the command that helps."""
    # Mediapipe keeps the error of a missing sound library for good, and with it all frames that led to its import and
    # what they hold: on a thread of its own there are none of ours.
    with quiet(), warnings.catch_warnings(), ThreadPoolExecutor(1) as alone:
        warnings.simplefilter("ignore")
        try:
            return alone.submit(importlib.import_module, f"mediapipe.python.solutions.{name}").result()
        except ImportError as error:
            if ".so" in str(error):
                raise MissingDependencyError(
                    f"The landmark network cannot start because the system lacks a library ({error}); "
                    "run: sudo apt-get install -y libgl1 libglib2.0-0 libegl1 libgles2"
                ) from error
            raise MissingDependencyError(
                f"The package mediapipe cannot be loaded ({error}); run: pip install mediapipe==0.10.14"
            ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Sends what native code writes to the error stream while starting up into the void."""
    os.environ.setdefault("GLOG_minloglevel", "2")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    warnings.filterwarnings("ignore", message="SymbolDatabase.GetPrototype", category=UserWarning)
    saved = os.dup(2)
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(sink)
