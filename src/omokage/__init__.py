"""omokage: one video in, a living avatar out.

The public names are loaded when they are first used, so `import omokage` stays light: no torch, no OpenCV.
"""

import os

# Must come before anything imports torch: idle OpenMP threads that spin instead of sleeping make training and
# rendering up to ten times slower as soon as another process keeps one core busy.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Our matrices are small: threads only cost time in BLAS (PyTorch keeps its own).
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from typing import TYPE_CHECKING, Any

from omokage.errors import (
    BundleError,
    CaptureRefusedError,
    InputError,
    InternalError,
    MediaError,
    MissingDependencyError,
    NoFaceError,
    OmokageError,
    OutputError,
    WeightsError,
)

if TYPE_CHECKING:
    from omokage.avatar.bundle import Avatar
    from omokage.capture.check import check_recording
    from omokage.pipelines.animate import animate
    from omokage.pipelines.create import create_avatar
    from omokage.pipelines.live_reenact import LiveReenactor
    from omokage.pipelines.live_speaker import LiveSpeaker
    from omokage.pipelines.reenact import reenact
    from omokage.pipelines.rehearse import rehearse
    from omokage.pipelines.speak import speak
    from omokage.pipelines.verify import verify
    from omokage.tracking.face_track import FaceTrack

__version__ = "0.1.0"

__all__ = [
    "Avatar",
    "BundleError",
    "CaptureRefusedError",
    "FaceTrack",
    "InputError",
    "InternalError",
    "LiveReenactor",
    "LiveSpeaker",
    "MediaError",
    "MissingDependencyError",
    "NoFaceError",
    "OmokageError",
    "OutputError",
    "WeightsError",
    "__version__",
    "animate",
    "check_recording",
    "create_avatar",
    "reenact",
    "rehearse",
    "speak",
    "verify",
]

_LAZY = {
    "Avatar": "omokage.avatar.bundle",
    "FaceTrack": "omokage.tracking.face_track",
    "LiveReenactor": "omokage.pipelines.live_reenact",
    "LiveSpeaker": "omokage.pipelines.live_speaker",
    "animate": "omokage.pipelines.animate",
    "check_recording": "omokage.capture.check",
    "create_avatar": "omokage.pipelines.create",
    "reenact": "omokage.pipelines.reenact",
    "rehearse": "omokage.pipelines.rehearse",
    "speak": "omokage.pipelines.speak",
    "verify": "omokage.pipelines.verify",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its module (PEP 562)."""
    if name not in _LAZY:
        raise AttributeError(f"module 'omokage' has no attribute '{name}'")
    from importlib import import_module

    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
