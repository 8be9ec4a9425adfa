"""Memory and time of tracking a long recording in 1080p.

    python benchmarks/long_recording.py CLIP --minutes 30 --output benchmarks/results/long-recording.json

The clip is enlarged to the height of 1080p and repeated until it is long enough; its name alone goes into the result.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
import cv2
from reports import command

from omokage.media.decode import probe, read_frames
from omokage.pipelines.bench import machine
from omokage.pipelines.predict import tracking_gb
from omokage.pipelines.recording import MAX_SIDE_PX
from omokage.tracking.tracker import track_clip

WIDTH, HEIGHT = 1920, 1080


def enlarge(clip: Path, target: Path) -> None:
    """Pictures of `clip` in the middle of 1080p, the borders repeated beside them."""
    with av.open(str(clip)) as source, av.open(str(target), "w") as result:
        stream = result.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.options = {"preset": "ultrafast", "crf": "20"}
        for frame in source.decode(video=0):
            wide = min(WIDTH, round(frame.width * HEIGHT / frame.height / 2) * 2)
            image = cv2.resize(frame.to_ndarray(format="rgb24"), (wide, HEIGHT))
            side = (WIDTH - wide) // 2
            image = cv2.copyMakeBorder(image, 0, 0, side, WIDTH - wide - side, cv2.BORDER_REPLICATE)
            result.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        result.mux(stream.encode())


def repeat(clip: Path, target: Path, seconds: float) -> None:
    """The packets of `clip` again and again, not encoded anew."""
    with av.open(str(target), "w") as result:
        copied: Any = None
        start = 0.0
        while start < seconds:
            with av.open(str(clip)) as source:
                stream, end = source.streams.video[0], 0.0
                copied = copied or result.add_stream_from_template(stream)
                for packet in _packets(source, stream):
                    end = max(end, float((packet.pts + packet.duration) * stream.time_base))
                    shift = int(start / stream.time_base)
                    packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, copied
                    result.mux(packet)
            start += end


def _packets(source: Any, stream: Any) -> Iterator[Any]:
    return (packet for packet in source.demux(stream) if packet.dts is not None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clip", type=Path)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--note", default="")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base, long = Path(folder) / "base.mp4", Path(folder) / "long.mp4"
        # In a process of its own: what encoding leaves in memory is no part of tracking.
        making = get_context("spawn").Process(target=enlarge, args=(given.clip, base))
        making.start()
        making.join()
        repeat(base, long, 60 * given.minutes)
        frames, start = probe(long).frame_count, time.monotonic()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        track = track_clip(read_frames(long, max_side=MAX_SIDE_PX))
    result = {
        "benchmark": "long recording",
        "command": command(),
        "date": date.today().isoformat(),
        "machine": machine(),
        "note": given.note,
        "clip": given.clip.name,
        "minutes": given.minutes,
        "frames": frames,
        "tracked_share": round(float(track.is_tracked.mean()), 4),
        "seconds": round(time.monotonic() - start, 1),
        "peak_before_tracking_gb": round(before, 2),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "predicted_gb": round(tracking_gb(frames), 2),
    }
    given.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
