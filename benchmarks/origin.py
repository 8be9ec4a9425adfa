"""What signing and reading the origin of a file takes: targets T1 and T2 (docs/origin.md).

    python benchmarks/origin.py --output benchmarks/results/origin.json

Clips of noise, of about 0.1, 10 and 257 MB, are signed by an authority of their own, with and without a time stamp, and
read in this process and as `omokage verify` does it, in the decoder's.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import av
import numpy as np
from reports import command, spread, timed

from omokage.media.manifest import manifest_in
from omokage.pipelines.bench import machine
from omokage.trust.identity import identity, trusted_roots
from omokage.trust.origin import OriginClaim, read_origin, sign_origin
from omokage.trust.stamp_authority import stamp_authority

SIZES_MB = {"small": 0.1, "10 MB": 10.0, "257 MB": 257.0}
TARGETS_S = {"sign 10 MB": 0.15, "read small, in this process": 0.05, "read 257 MB": 3.0}
CLAIM = OriginClaim(
    title="clip.mp4",
    source_type="http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia",
    purpose="private",
    consent="c0" * 32,
    sources=("ab" * 32,),
)


def noise(path: Path, megabytes: float) -> Path:
    """A clip of about that size: noise hardly shrinks."""
    picture = np.random.default_rng(0).integers(0, 255, (720, 1280, 3)).astype(np.uint8)
    with av.open(str(path), "w") as container:
        options = {"crf": "4", "preset": "ultrafast", "g": "1"}
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = (
            (128, 72, "yuv420p") if megabytes < 1 else (1280, 720, "yuv420p")
        )
        written = 0
        while written < megabytes * 1e6:
            frame = av.VideoFrame.from_ndarray(picture[: stream.height, : stream.width], "rgb24")
            for packet in stream.encode(frame):
                written += packet.size
                container.mux(packet)
        container.mux(stream.encode(None))
    return path


def measured(path: Path, repeats: int) -> dict[str, Any]:
    """Seconds to sign a copy, with and without a stamp, and to read the one that was stamped, in two ways."""
    plain, copy = path.read_bytes(), path.with_name("copy.mp4")
    owner, roots, authority = identity(), trusted_roots().decode(), stamp_authority()
    rows = {}
    for name, stamps in (("sign", None), ("sign and stamp", authority)):
        times = []
        for _ in range(repeats):  # each time anew: a signed file that is signed again holds both
            copy.write_bytes(plain)
            started = time.perf_counter()
            assert sign_origin(copy, CLAIM, owner, stamps=stamps)
            times.append(time.perf_counter() - started)
        rows[name] = spread(times)

    def read_here() -> None:
        with copy.open("rb") as file:
            found = manifest_in(file, roots)
        assert found is not None and found.state == "Trusted"

    rows["read, in this process"] = timed(read_here, repeats)[0]
    rows["read, as verify does"] = timed(lambda: read_origin(copy), repeats)[0]
    return {"bytes": len(plain), "signed_bytes": copy.stat().st_size, "seconds": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--largest-mb", type=float, default=257.0, help="leaves out files that are larger")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        os.environ["OMOKAGE_HOME"] = str(Path(place) / "home")  # an authority of its own
        rows = {
            name: measured(noise(Path(place) / "clip.mp4", megabytes), given.repeats)
            for name, megabytes in SIZES_MB.items()
            if megabytes <= given.largest_mb
        }
    result = {
        "benchmark": "origin",
        "protocol": f"seconds on the clock, {given.repeats} times; signed with the hash of the whole file, the check "
        "of the result included; read with every hash checked",
        "command": command(),
        "date": date.today().isoformat(),
        "machine": machine(),
        "targets_s": TARGETS_S,
        "files": rows,
    }
    given.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
