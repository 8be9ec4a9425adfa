"""`omokage evaluate VIDEO --speech SOUND`: how well a generated video talks. MAIN: `evaluate_video`."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np

from omokage.config import Progress, ProgressCallback, ignore_progress
from omokage.errors import InputError, NoFaceError
from omokage.evaluate.networks import installed_experts
from omokage.evaluate.portrait_video import TalkingEvaluation, evaluate_takes, render_talking_report
from omokage.evaluate.talking_scores import Experts, Question, Take
from omokage.files import result_folder
from omokage.media.decode import read_frames
from omokage.metrics.image import Frames
from omokage.metrics.talking import envelope_db
from omokage.pipelines.speech_track import read_speech
from omokage.pipelines.subject import read_take
from omokage.talking.conditions.portrait import MOTION_FRAMES
from omokage.talking.conditions.speech import FRAME_RATE, SAMPLES_PER_FRAME
from omokage.talking.config import official
from omokage.threads import one_blas_thread
from omokage.trust.release import release_text

LONGEST_S = 120  # more is not read: the measures are means, and all frames are held in memory
MAX_SIDE_PX = 512


@one_blas_thread()
def evaluate_video(
    video: Path,
    speech: Path,
    *,
    output: Path,
    recording: Path | None = None,
    window_frames: int | None = None,
    experts: Experts | None = None,
    on_progress: ProgressCallback = ignore_progress,
) -> TalkingEvaluation:
    """Measure a video against what is said in it, and write report.html and report.json into the folder `output`.

    recording: the true video of the same speech, if there is one; without, lips are compared with the loudness.
    window_frames: of the model that made the video, None for the published one; between windows seams are looked for.
    experts: networks for measures that need one, None for those that are installed.
    The first `LONGEST_S` seconds count. Raises MediaError for a file that cannot be read, NoFaceError when no frame
    shows a face, InputError.
    """
    experts = installed_experts() if experts is None else experts
    voice = read_speech(Path(speech)).voice
    frames = _frames(Path(video), on_progress)
    truth = None if recording is None else _frames(Path(recording), on_progress)
    count = min(len(frames), -(-len(voice) // SAMPLES_PER_FRAME), len(truth if truth is not None else frames))
    if count < FRAME_RATE:
        raise InputError(
            f"only {count} frames of video, speech and recording belong together, and at least {FRAME_RATE} are needed"
        )
    new = (window_frames or official().frames) - MOTION_FRAMES
    if new < 1:
        raise InputError(f"a window has more than its {MOTION_FRAMES} motion frames, got {window_frames}")
    on_progress(Progress("evaluating", 0, 1, "landmarks"))
    take = read_take(frames[:count], tuple(range(new, count, new)))
    if not np.isfinite(take.landmarks).all(axis=(1, 2)).any():
        raise NoFaceError(f"no face is found in {video}; it cannot be measured how it talks")
    question = Question(
        frame_rate=float(FRAME_RATE),
        voice=voice[: count * SAMPLES_PER_FRAME],
        loudness=envelope_db(voice, SAMPLES_PER_FRAME, count),
        portrait=Take(take.frames[:1], take.landmarks[:1]),
        truth=None if truth is None else read_take(truth[:count], ()),
    )
    evaluation = evaluate_takes(Path(video).name, question, [take], {}, {}, experts=experts)
    strips = {} if question.truth is None else {"recording": question.truth.frames}
    with result_folder(Path(output)) as folder:
        release_text(
            render_talking_report(evaluation, strips | {"generated": take.frames}), folder / "report.html"
        )
        release_text(json.dumps(evaluation.to_json(), indent=1), folder / "report.json")
    on_progress(Progress("evaluating", 1, 1))
    return evaluation


def _frames(path: Path, on_progress: ProgressCallback) -> Frames:
    frames = []
    for frame in read_frames(path, frame_rate=Fraction(FRAME_RATE), max_side=MAX_SIDE_PX):
        frames.append(frame.image)
        on_progress(Progress("reading", len(frames), 0, path.name))
        if len(frames) == LONGEST_S * FRAME_RATE:
            break
    return np.stack(frames)
