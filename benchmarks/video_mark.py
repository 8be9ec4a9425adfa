"""What the invisible mark costs, survives and claims: targets T6 to T10, docs/marks.md explains the numbers.

    python benchmarks/video_mark.py CLIP... --output benchmarks/results/video-mark.json

`video_mark_targets.py` has the many trials of T7 and T8. Besides the clips, whose names alone are kept, it takes drawn
people and the public pictures that scikit-image ships. Marked frames are first encoded as omokage releases them (H.264,
CRF 18), then changed and encoded again. A part at a time with `--only`; parts that a result file already has are kept.
VMAF is measured where `imageio-ffmpeg` is installed, whose ffmpeg brings it and is called as a program.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mark_clips import Clip, Picture, cropped, each, encoded, jpeg, noisy, resized, sources, stills, turned
from numpy.typing import NDArray
from reports import measure_parts
from skimage.metrics import structural_similarity

from omokage.trust import mark_search
from omokage.trust.mark_code import coded_length, decode
from omokage.trust.mark_pattern import PRIVATE_BITS, PUBLIC_BITS, PUBLIC_KEY, PUBLIC_PAYLOAD, chips_of
from omokage.trust.mark_search import (
    LEAST_PRIVATE_SCORE,
    LEAST_PUBLIC_SCORE,
    PRESENT,
    Evidence,
    Found,
    Key,
    Place,
    find,
)
from omokage.trust.mark_signal import chip_px, folded, whitened
from omokage.trust.video_mark import PUBLIC_SHARE, Mark, Marker, Profile

SECONDS = 2.0
MARKS = 3  # of which VMAF is measured, on each clip
SIDES = (192, 256, 320, 384)
PUBLIC = Key(chips_of(PUBLIC_KEY, PUBLIC_BITS), PUBLIC_SHARE, LEAST_PUBLIC_SCORE)
PARTS = ("cost", "time", "false_claims", "sizes", "robustness", "robustness_high_assurance")


def private(key: bytes) -> Key:
    return Key(chips_of(key, PRIVATE_BITS), 1 - PUBLIC_SHARE, LEAST_PRIVATE_SCORE)


ATTACKS: dict[str, Callable[[Clip], Clip]] = {
    "as released": lambda clip: clip,
    "CRF 23": lambda clip: encoded(clip, 23)[0],
    "CRF 28": lambda clip: encoded(clip, 28)[0],
    "CRF 33": lambda clip: encoded(clip, 33)[0],
    "0.75x, CRF 23": lambda clip: encoded(resized(clip, 0.75), 23)[0],
    "10 % crop, CRF 23": lambda clip: encoded(cropped(clip), 23)[0],
    "10 % crop, 0.75x, CRF 28": lambda clip: encoded(resized(cropped(clip), 0.75), 28)[0],
    "0.5x, CRF 23": lambda clip: encoded(resized(clip, 0.5), 23)[0],
    "1.5x, CRF 28": lambda clip: encoded(resized(clip, 1.5), 28)[0],
    "40 % crop, CRF 23": lambda clip: encoded(cropped(clip, 0.4), 23)[0],
    "mirrored, CRF 28": lambda clip: encoded(each(lambda p: p[:, ::-1])(clip), 28)[0],
    "VP9 CRF 35": lambda clip: encoded(clip, 35, "libvpx-vp9")[0],
    "gamma and contrast, CRF 28": lambda clip: encoded(
        each(lambda p: np.clip(255 * (p / 255) ** 0.8 * 0.9 + 10, 0, 255))(clip), 28
    )[0],
    "blur of 2 px, CRF 23": lambda clip: encoded(each(lambda p: cv2.GaussianBlur(p, (0, 0), 2))(clip), 23)[0],
    "noise of 10 levels, CRF 23": lambda clip: encoded(noisy(clip), 23)[0],
    "one frame only, CRF 23": lambda clip: encoded(clip, 23)[0][:1],
    "1 degree of rotation, CRF 23": lambda clip: encoded(turned(clip, 1.0), 23)[0],
    "5 % stretch, CRF 23": lambda clip: encoded(
        each(lambda p: cv2.resize(p, None, fx=1.05, fy=1.0, interpolation=cv2.INTER_CUBIC))(clip), 23
    )[0],
}
T7 = ("CRF 23", "CRF 28", "0.75x, CRF 23", "10 % crop, CRF 23")
T8 = ("CRF 33", "10 % crop, 0.75x, CRF 28")


def evidence_of(clip: Sequence[Picture]) -> NDArray[np.float32]:
    evidence = Evidence()
    for picture in clip:
        evidence.add(picture)
    return evidence.plane()


def look(clip: Sequence[Picture], key: bytes) -> list[Found]:
    return find(evidence_of(clip), [PUBLIC, private(key)])


def draws(count: int, seed: int) -> Iterator[Mark]:
    """Random payloads and keys."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        yield Mark(int(random.integers(0, 1 << PRIVATE_BITS)), random.bytes(32))


# T6: cost


def measure_cost(clips: dict[str, Clip]) -> dict[str, Any]:
    rows = []
    for name, clip in clips.items():
        for profile in ("standard", "high assurance"):
            rows.append({"clip": name, "profile": profile} | _cost(clip, profile))  # type: ignore[arg-type]
    standard = [row for row in rows if row["profile"] == "standard"]
    keys = ("psnr_db", "ssim", "vmaf_drop", "bitrate_crf23_percent", "bitrate_crf18_percent", "ms_per_frame")
    return {
        "vmaf": "v0.6.1; of frames after CRF 23 against those before, without a mark less with one; the most of "
        f"{MARKS} marks, the rest of the first",
        "standard": {
            key: {
                "median": _round(statistics.median(row[key] for row in standard)),
                "min": min(row[key] for row in standard),
                "max": max(row[key] for row in standard),
            }
            for key in keys
            if all(row[key] is not None for row in standard)
        },
        "clips": rows,
    }


def vmaf(plain: Clip, changed: Clip) -> float | None:
    """VMAF v0.6.1 (Netflix) of frames against those that they were made of; None without a program that has it."""
    try:
        import imageio_ffmpeg
    except ImportError:
        return None
    height, width = (side - side % 2 for side in plain[0].shape[:2])
    with tempfile.TemporaryDirectory() as folder:
        given: list[str] = []
        for name, clip in (("changed", changed), ("plain", plain)):
            path = Path(folder) / name
            path.write_bytes(b"".join(np.ascontiguousarray(p[:height, :width]).tobytes() for p in clip))
            given += [
                "-f",
                "rawvideo",
                "-pix_fmt",
                "rgb24",
                "-s",
                f"{width}x{height}",
                "-r",
                "25",
                "-i",
                str(path),
            ]
        log = Path(folder) / "log.json"
        graph = (
            "[0]format=yuv420p[a];[1]format=yuv420p[b];"
            f"[a][b]libvmaf=model=version=vmaf_v0.6.1:log_fmt=json:log_path={log}:n_threads=2"
        )
        program = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *given, "-lavfi", graph, "-f", "null", "-"]
        subprocess.run(program, check=True, capture_output=True)
        return float(json.loads(log.read_text())["pooled_metrics"]["vmaf"]["mean"])


def _cost(clip: Clip, profile: Profile) -> dict[str, Any]:
    mark, *others = (Mark(one.render_id, one.key, profile) for one in draws(MARKS, 1))
    start = time.process_time()
    marker = Marker(mark, clip[0])
    first_ms = 1000 * (time.process_time() - start)
    start = time.process_time()
    marked = [marker.apply(picture) for picture in clip]
    frame_ms = 1000 * (time.process_time() - start) / len(clip)
    pairs = list(zip(clip[::10], marked[::10], strict=True))
    errors = [np.mean((one.astype(float) - other) ** 2) for one, other in pairs]
    sizes = {crf: encoded(marked, crf)[1] / encoded(clip, crf)[1] for crf in (18, 23)}
    plain, own, *more = [
        vmaf(clip, encoded(frames, 23)[0])
        for frames in (clip, marked, *(_marked(clip, one) for one in others))
    ]
    drops = None if plain is None else [_round(plain - seen) for seen in (own, *more)]
    return {
        "size": f"{clip[0].shape[1]}x{clip[0].shape[0]}",
        "frames": len(clip),
        "psnr_db": _round(10 * np.log10(255**2 / np.mean(errors))),
        "ssim": _round(statistics.mean(structural_similarity(a, b, channel_axis=2) for a, b in pairs), 4),
        "vmaf_drop": drops and max(drops),
        "vmaf_drop_of_each": drops,
        "vmaf_without": None if plain is None else _round(plain),
        "bitrate_crf23_percent": _round(100 * (sizes[23] - 1)),
        "bitrate_crf18_percent": _round(100 * (sizes[18] - 1)),
        "ms_per_frame": _round(frame_ms),
        "ms_for_the_first": _round(first_ms),
    }


def _marked(clip: Clip, mark: Mark) -> Clip:
    marker = Marker(mark, clip[0])
    return [marker.apply(picture) for picture in clip]


# T7, T8: robustness


def measure_robustness(
    clips: dict[str, Clip],
    pictures: dict[str, Picture],
    repeats: int,
    profile: Profile,
    *,
    targets_only: bool,
) -> dict[str, Any]:
    """Every attack with a target `repeats` times on every clip, the others once; pictures have attacks of their own."""
    trials: list[dict[str, Any]] = []
    for index, (name, clip) in enumerate(clips.items()):
        for repeat, mark in enumerate(draws(repeats, 100 + index)):
            chosen = [a for a in ATTACKS if a in T7 + T8 or (repeat == 0 and not targets_only)]
            trials += _attacked(name, clip, Mark(mark.render_id, mark.key, profile), chosen)
            print(profile, name, repeat, _tally([t for t in trials if t["source"] == name]), flush=True)
    for index, (name, picture) in enumerate(pictures.items()):
        for mark in draws(repeats, 500 + index):
            trials += _attacked(name, [picture], Mark(mark.render_id, mark.key, profile), PICTURE_ATTACKS)
        print(profile, name, _tally([t for t in trials if t["source"] == name]), flush=True)
    return {
        "rule": f"private: CRC and score >= {LEAST_PRIVATE_SCORE}; public: CRC and score >= {LEAST_PUBLIC_SCORE}",
        "targets": {"T7": list(T7), "T8": list(T8)},
        "wrong_payloads_accepted": sum(trial["wrong"] for trial in trials),
        "videos": _by_attack([t for t in trials if not t["picture"]]),
        "pictures": _by_attack([t for t in trials if t["picture"]]),
        "trials": trials,
    }


PICTURE_ATTACKS: dict[str, Callable[[Picture], Picture]] = {
    "as released": lambda p: p,
    "JPEG 90": lambda p: jpeg(p, 90),
    "JPEG 75": lambda p: jpeg(p, 75),
    "JPEG 50": lambda p: jpeg(p, 50),
    "0.75x, JPEG 80": lambda p: jpeg(resized([p], 0.75)[0], 80),
    "10 % crop, JPEG 80": lambda p: jpeg(cropped([p])[0], 80),
}


def _attacked(name: str, clip: Clip, mark: Mark, attacks: Iterable[str]) -> list[dict[str, Any]]:
    pictures = len(clip) == 1
    marked = _marked(clip, mark)
    leaving = marked if pictures else encoded(marked, 18)[0]
    rows = []
    for attack in attacks:
        seen = [PICTURE_ATTACKS[attack](leaving[0])] if pictures else ATTACKS[attack](leaving)
        public, own = look(seen, mark.key)
        rows.append(
            {
                "source": name,
                "profile": mark.profile,
                "attack": attack,
                "picture": pictures,
                "public": public.payload == PUBLIC_PAYLOAD,
                "private": own.payload == mark.render_id,
                "present": public.is_present or own.is_present,
                "wrong": int(public.payload not in (None, PUBLIC_PAYLOAD))
                + int(own.payload not in (None, mark.render_id)),
                "z": _round(max(public.z, own.z)),
                "public_score": _round(public.score),
                "private_score": _round(own.score),
            }
        )
    return rows


def _by_attack(trials: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for trial in trials:
        groups.setdefault((trial["profile"], trial["attack"]), []).append(trial)
    return [
        {"profile": profile, "attack": attack, "n": len(group)}
        | {name: sum(t[name] for t in group) for name in ("public", "private", "present")}
        | {f"least_{name}": min(t[name] for t in group) for name in ("z", "public_score", "private_score")}
        for (profile, attack), group in groups.items()
    ]


def _tally(trials: Sequence[dict[str, Any]]) -> str:
    return f"public {sum(t['public'] for t in trials)}, private {sum(t['private'] for t in trials)} of {len(trials)}"


def measure_sizes(clips: dict[str, Clip], repeats: int) -> dict[str, Any]:
    """The same scenes released smaller."""
    rows = []
    for side in SIDES:
        for attack in ("as released", "CRF 23", "CRF 28"):
            tally = {"side": side, "attack": attack, "n": 0, "public": 0, "private": 0}
            for index, clip in enumerate(clips.values()):
                small = resized(clip, side / min(clip[0].shape[:2]))
                for mark in draws(repeats, 700 + index):
                    marker = Marker(mark, small[0])
                    leaving = encoded([marker.apply(picture) for picture in small], 18)[0]
                    public, own = look(ATTACKS[attack](leaving), mark.key)
                    tally["n"] += 1
                    tally["public"] += public.payload == PUBLIC_PAYLOAD
                    tally["private"] += own.payload == mark.render_id
            rows.append(tally)
            print(tally, flush=True)
    return {"rows": rows}


# T9: false claims


def measure_false_claims(
    clips: dict[str, Clip], pictures: dict[str, Picture], keys: int, searches: int, codes: int
) -> dict[str, Any]:
    """Wrong keys on marked and unmarked pictures, at the scale as is; some searched at every scale; noise decoded."""
    random = np.random.default_rng(9)
    planes: list[tuple[str, bool, NDArray[np.float32]]] = []
    for name, clip in {**clips, **{n: [p] for n, p in pictures.items()}}.items():
        marked = Marker(next(draws(1, 3)), clip[0])
        planes.append((name, False, evidence_of(clip[:10])))
        planes.append((name, True, evidence_of([marked.apply(p) for p in clip[:10]])))
    return {
        "windows": _windows(planes, keys, random),
        "searches": _searches(planes, searches, random),
        "code": {name: _noise(bits, codes, random) for name, bits in (("public", 16), ("private", 48))},
    }


def _windows(planes: Sequence[Any], keys: int, random: np.random.Generator) -> dict[str, Any]:
    """One scale, all places, mirrored too: the peak and what would be decoded there."""
    widths = {name: chip_px(*plane.shape) for name, _, plane in planes}
    z: dict[bool, list[float]] = {False: [], True: []}
    accepted, scores, intact = 0, [], 0
    spectra = [
        (has_mark, whitened(folded(plane, widths[name], widths[name])), widths[name])
        for name, has_mark, plane in planes
    ]
    for _ in range(keys):
        chips = private(random.bytes(32))
        for has_mark, spectrum, width in spectra:
            for is_mirrored in (False, True):
                place = mark_search._peak(spectrum, Place(width, width, is_mirrored, (chips,)))
                z[has_mark].append(place.z)
            soft = mark_search.soft_bits(spectrum, chips.chips, place.row, place.column, is_mirrored=True)
            decoded = decode(soft, PRIVATE_BITS)
            scores.append(decoded.score)
            intact += decoded.is_intact
            accepted += decoded.is_intact and decoded.score >= LEAST_PRIVATE_SCORE
        chips_of.cache_clear()
        mark_search._sync_spectrum.cache_clear()
    return {
        "what": "a wrong key on one picture at one scale, all 147 456 places; straight and mirrored",
        "n": len(z[False]) + len(z[True]),
        "n_decoded": len(scores),
        "accepted": accepted,
        "crc_passed": intact,
        "score": _spread(scores),
        "z_unmarked": _spread(z[False]),
        "z_marked_with_another_key": _spread(z[True]),
        "z_at_least_present": sum(v >= PRESENT for v in z[False] + z[True]),
    }


def _searches(planes: Sequence[Any], count: int, random: np.random.Generator) -> dict[str, Any]:
    """The whole detector, all scales: a wrong private key, on marked pictures too; the public key on unmarked ones."""
    rows = []
    for index in range(count):
        name, has_mark, plane = planes[index % len(planes)]
        public, own = find(plane, [PUBLIC, private(random.bytes(32))])
        rows.append((name, has_mark, public, own))
    unmarked = [row for row in rows if not row[1]]
    return {
        "n": count,
        "n_unmarked": len(unmarked),
        "wrong_private_accepted": sum(own.payload is not None for *_, own in rows),
        "public_accepted_on_unmarked": sum(public.payload is not None for _, _, public, _ in unmarked),
        "present_on_unmarked": sum(a.is_present or b.is_present for _, _, a, b in unmarked),
        "z_unmarked": _spread([max(a.z, b.z) for _, _, a, b in unmarked]),
        "private_score": _spread([own.score for *_, own in rows]),
        "public_score_unmarked": _spread([a.score for _, _, a, _ in unmarked]),
    }


def _noise(bits: int, count: int, random: np.random.Generator) -> dict[str, Any]:
    decoded = [decode(random.normal(size=coded_length(bits)), bits) for _ in range(count)]
    least = LEAST_PUBLIC_SCORE if bits == PUBLIC_BITS else LEAST_PRIVATE_SCORE
    return {
        "n": count,
        "crc_passed": sum(d.is_intact for d in decoded),
        "score": _spread([d.score for d in decoded]),
        "score_at_least_accepted": sum(d.score >= least for d in decoded),
    }


# T10: time


def measure_time(clips: dict[str, Clip]) -> dict[str, Any]:
    """50 frames of 512 x 512 without a mark: the longest way, every scale, one thread."""
    name, clip = next((n, c) for n, c in clips.items() if min(c[0].shape[:2]) == 512)
    rows = []
    for count in (1, 2):
        keys = [PUBLIC, private(b"\1" * 32)][:count]
        find(evidence_of(clip[:2]), keys)
        start = time.process_time()
        plane = evidence_of(clip)
        average = time.process_time()
        find(plane, keys)
        rows.append(
            {
                "keys": count,
                "average_s": _round(average - start),
                "search_s": _round(time.process_time() - average),
            }
        )
    return {"clip": name, "frames": len(clip), "clock": "processor time of this process", "rows": rows}


def _spread(values: Sequence[float]) -> dict[str, float]:
    array = np.asarray(values)
    return {
        "mean": _round(array.mean()),
        "sd": _round(array.std()),
        "p99": _round(np.percentile(array, 99)),
        "max": _round(array.max()),
    }


def _round(value: Any, digits: int = 2) -> float:
    return round(float(value), digits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", type=Path, nargs="*")
    parser.add_argument("--repeats", type=int, default=3, help="marks for each source")
    parser.add_argument("--keys", type=int, default=200, help="wrong keys for each picture")
    parser.add_argument("--searches", type=int, default=60)
    parser.add_argument("--codes", type=int, default=10000)
    parser.add_argument("--targets-only", action="store_true", help="only the attacks that have a target")
    parser.add_argument("--only", nargs="+", choices=PARTS)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    clips, pictures = sources(arguments.clips, SECONDS), stills()
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "cost": lambda: measure_cost(clips),
        "time": lambda: measure_time(clips),
        "false_claims": lambda: measure_false_claims(
            clips, pictures, arguments.keys, arguments.searches, arguments.codes
        ),
        "sizes": lambda: measure_sizes(clips, arguments.repeats),
        "robustness": lambda: measure_robustness(
            clips, pictures, arguments.repeats, "standard", targets_only=arguments.targets_only
        ),
        "robustness_high_assurance": lambda: measure_robustness(
            clips, pictures, arguments.repeats, "high assurance", targets_only=arguments.targets_only
        ),
    }
    measure_parts(arguments.output, "video mark", parts, arguments.only, opencv=cv2.__version__)


if __name__ == "__main__":
    main()
