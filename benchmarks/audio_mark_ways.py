"""Ways to hide a mark in speech, beside each other: docs/research/audio-mark.md.

    python benchmarks/audio_mark_ways.py SOUND... --output benchmarks/results/audio-mark-ways.json

Every way changes the same sounds by the same power and is encoded (AAC, 64 kbit/s); told is how far the sum over all
chips of 15 s stands out of the noise (z, for which a wrong pattern has 0 and standard deviation 1). Where the pattern
lies is known here: what the search costs is left out, and so is the code.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.fft
from audio_mark import PUBLIC, Float32, Sound, aac, draws, marked, part, private, sources
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from omokage.pipelines.bench import machine
from omokage.trust import sound_mark
from omokage.trust.mark_code import encode
from omokage.trust.sound_mark import _sent
from omokage.trust.sound_search import find_in_sound
from omokage.trust.sound_signal import BANDS, PHASES, SLOTS, folded, levels
from omokage.trust.video_mark import Mark

SNR_DB = 28.0
LEFT_OUT = ("eSpeak NG en-gb+f3, slow", "eSpeak NG ja", "Flite rms", "Flite kal16")  # much like the others


@dataclass(frozen=True)
class Way:
    """Cells of `slot_s` by one of `bands` between `low` and `high` Hz; how they are changed and read.

    evenness: 0, every cell by the same share; 0.5, by the same power.  is_power_averaged: the mean of powers is a
    cell's, instead of that of levels.  around: cells over time and bands whose mean is taken away.  is_flat: the
    spectrum of all cells is made flat.
    """

    slot_s: float = 0.02
    bands: int = 48
    low_hz: float = 275.0
    high_hz: float = 5075.0
    evenness: float = 0.0
    is_power_averaged: bool = True
    around: tuple[int, int] = (3, 3)
    is_flat: bool = False


FINE = Way()
WAYS = {
    "cells of 80 ms, 16 bands": Way(slot_s=0.08, bands=16),
    "cells of 40 ms, 24 bands": Way(slot_s=0.04, bands=24),
    "cells of 20 ms, 48 bands": FINE,
    "the same between 300 and 4000 Hz": replace(FINE, low_hz=300, high_hz=4000, bands=37),
    "only over time": replace(FINE, around=(3, 1)),
    "weak cells change more": replace(FINE, evenness=0.4),
    "and levels are averaged": replace(FINE, evenness=0.4, is_power_averaged=False),
    "and the spectrum made flat": replace(FINE, evenness=0.4, is_power_averaged=False, is_flat=True),
    "all that, cells of 40 ms, 24 bands": Way(0.04, 24, evenness=0.4, is_power_averaged=False, is_flat=True),
}


def bands_of(way: Way, window: int, rate: int) -> NDArray[np.float64]:
    width = rate / window
    lower = (np.arange(window // 2 + 1)[:, None] - 0.5) * width
    edges = np.linspace(way.low_hz, way.high_hz, way.bands + 1)
    return np.clip((np.minimum(lower + width, edges[1:]) - np.maximum(lower, edges[:-1])) / width, 0, 1)


def changed(sound: Sound, way: Way, chips: NDArray[np.float64], share: float) -> Sound:
    """Every cell louder or softer by at most `share` of itself, never by more than 0.35."""
    samples, rate = sound[0][:, 0], sound[1]
    hop = round(0.01 * rate)
    window = np.sqrt(np.hanning(2 * hop + 1)[:-1])
    halves = np.pad(samples, (hop, 2 * hop + -len(samples) % hop)).reshape(-1, hop)
    spectrum = scipy.fft.rfft(np.concatenate([halves[:-1], halves[1:]], axis=1) * window, axis=1)
    bands = bands_of(way, 2 * hop, rate)
    power = np.abs(spectrum) ** 2 @ bands + 1e-12
    slots = (np.arange(len(spectrum)) * hop / rate // way.slot_s).astype(int)
    change = np.minimum(0.35, share * (power / power.sum(axis=1).mean()) ** -way.evenness)
    spectrum *= 1 + (change * chips[slots]) @ bands.T
    made = scipy.fft.irfft(spectrum, n=2 * hop, axis=1) * window
    total = np.zeros((len(made) + 1, hop))
    total[:-1] += made[:, :hop]
    total[1:] += made[:, hop:]
    return total.reshape(-1)[hop : hop + len(samples), None].astype(np.float32), rate


def at_ratio(sound: Sound, change: Callable[[float], Sound]) -> tuple[Sound, float]:
    """The change that is `SNR_DB` below the sound, and how far below it is."""
    low, high, result, ratio = 3e-3, 1.0, sound, 0.0
    for _ in range(8):
        middle = float(np.sqrt(low * high))
        result = change(middle)
        ratio = 10 * np.log10(np.sum(sound[0] ** 2) / np.sum((result[0] - sound[0]) ** 2))
        low, high = (low, middle) if ratio < SNR_DB else (middle, high)
    return result, float(ratio)


def seen(sound: Sound, way: Way, chips: NDArray[np.float64]) -> float:
    """z of all chips, at the best of the places within 60 ms (codecs delay)."""
    samples, rate = sound[0][:, 0], sound[1]
    window, step = round(0.02 * rate), 0.005 * rate
    starts = np.round(np.arange(int((len(samples) - window) / step)) * step).astype(int)
    views = np.lib.stride_tricks.sliding_window_view(samples, window)
    spectrum = scipy.fft.rfft(views[starts] * np.hanning(window + 1)[:-1], axis=1)
    power = np.abs(spectrum) ** 2 @ bands_of(way, window, rate)
    floor, each = 1e-8 * power.sum(axis=1).mean() + 1e-20, round(way.slot_s / 0.005)
    best = -np.inf
    for shift in range(-2, 14):
        rows = np.roll(power, -shift, axis=0)[: len(power) // each * each].reshape(-1, each, way.bands)
        if way.is_power_averaged:
            cells = 10 * np.log10(rows.mean(axis=1) + floor)
        else:
            cells = np.mean(10 * np.log10(rows + floor), axis=1)
        rest = limited(cells - uniform_filter(cells, way.around))
        if way.is_flat:
            spectra = scipy.fft.rfft2(rest)
            smooth = uniform_filter(np.abs(spectra) ** 2, (max(3, len(rest) // 20), 3))
            rest = limited(scipy.fft.irfft2(spectra / np.sqrt(smooth + 1e-9), s=rest.shape))
        best = max(best, float((rest * chips[: len(rest)]).sum() / np.sqrt((rest**2).sum())))
    return best


def limited(values: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.clip(values / values.std(), -2, 2)


def ways(sounds: dict[str, Sound]) -> list[dict[str, Any]]:
    rows = []
    for name, way in WAYS.items():
        chips = np.random.default_rng(1).choice([-1.0, 1.0], (round(17 / way.slot_s), way.bands))
        row: dict[str, Any] = {"way": name, "z": {}}
        for of, sound in sounds.items():
            result, ratio = at_ratio(sound, partial(changed, sound, way, chips))
            row["z"][of] = round(seen(aac(result), way, chips), 1)
            row["snr_db"] = round(ratio, 1)
        row["mean"], row["least"] = round(float(np.mean(list(row["z"].values()))), 1), min(row["z"].values())
        rows.append(row)
        print(name, row["snr_db"], row["mean"], row["least"], flush=True)
    return rows


def product(sounds: dict[str, Sound]) -> list[dict[str, Any]]:
    """The mark as it is, and with one thing left out, at the same power."""
    mark = next(iter(draws(1, 1, "standard")))
    rows = []
    for name, settings in {
        "as it is": {},
        "every band by the same share": {"_EVENNESS": 0.0},
        "every band by the same power": {"_EVENNESS": 0.5},
        "each window for itself": {"_MEMORY_S": 1e-3},
        "at most 1.4 dB": {"_LARGEST": 0.175},
    }.items():
        before = {key: getattr(sound_mark, key) for key in settings} | {
            "SIGNAL_TO_MARK_DB": sound_mark.SIGNAL_TO_MARK_DB
        }
        for key, value in settings.items():
            setattr(sound_mark, key, value)
        row: dict[str, Any] = {"way": name, "z": {}}
        for of, sound in sounds.items():
            result, ratio = at_ratio(sound, partial(_louder, sound, mark))
            row["z"][of], row["snr_db"] = round(_all_chips(aac(result), mark), 1), round(ratio, 1)
        row["mean"], row["least"] = round(float(np.mean(list(row["z"].values()))), 1), min(row["z"].values())
        rows.append(row)
        print(name, row["snr_db"], row["mean"], row["least"], flush=True)
        for key, value in before.items():
            setattr(sound_mark, key, value)
    return rows


def informed(sounds: dict[str, Sound]) -> list[dict[str, Any]]:
    """Bits against which the whole sound speaks get more (Malvar and Florencio 2003), as in pictures; 3 s, AAC."""
    rows = []
    for name, cancelled in (("not informed", 0.0), ("informed", 0.5)):
        read = tried = 0
        score = []
        for index, sound in enumerate(sounds.values()):
            for mark in draws(4, 40 + index, "standard"):
                result, _ = at_ratio(sound, partial(_informed, sound, mark, cancelled))
                for start_s in (0.5, 3.5):
                    _, own = find_in_sound(*aac(part(result, start_s, 3)), [PUBLIC, private(mark.key)])
                    read, tried = read + (own.payload == mark.render_id), tried + 1
                    score.append(own.score)
        rows.append({"way": name, "private": read, "n": tried, "mean_score": round(float(np.mean(score)), 2)})
        print(rows[-1], flush=True)
    return rows


def _informed(sound: Sound, mark: Mark, cancelled: float, share: float) -> Sound:
    if not cancelled:
        return _louder(sound, mark, share)
    chips, plain = private(mark.key).chips, _sent(mark)
    word = encode(mark.render_id, chips.payload_bits)
    start = int(np.argmax([np.sum(np.roll(plain, s, axis=0) * chips.modulated(mark.render_id).reshape(SLOTS, BANDS))
                           for s in range(SLOTS)]))  # fmt: skip
    sign = np.roll(chips.sign.reshape(SLOTS, BANDS), -start, axis=0).reshape(-1)
    carries = np.roll(chips.carries.reshape(SLOTS, BANDS), -start, axis=0).reshape(-1)
    on = carries >= 0
    hidden, heard = (
        word * np.bincount(carries[on], weights=(folded(levels(*one), 0).reshape(-1) * sign)[on])
        for one in (sound, _louder(sound, mark, share))
    )
    weights = np.clip(1 - cancelled * hidden / max(float(np.mean(heard - hidden)), 1e-9), 0.1, 3.0)
    weights = np.append(weights / np.sqrt(np.mean(weights**2)), 1)[carries].reshape(SLOTS, BANDS)
    before, sound_mark._sent = sound_mark._sent, lambda _: (plain * weights).astype(np.float32)
    try:
        return _louder(sound, mark, share)
    finally:
        sound_mark._sent = before


def _louder(sound: Sound, mark: Mark, share: float) -> Sound:
    sound_mark.SIGNAL_TO_MARK_DB = {"standard": -20 * np.log10(share), "high assurance": 0.0}  # type: ignore[misc]
    return marked(sound, mark)


def _all_chips(sound: Sound, mark: Mark) -> float:
    rows = levels(*sound)
    chips: Float32 = _sent(mark)
    best = 0.0
    for phase in range(PHASES):
        plane = folded(rows, phase)
        spectra = np.conj(scipy.fft.rfft(chips, axis=0)) * scipy.fft.rfft(plane, axis=0)
        fit = scipy.fft.irfft(spectra.sum(axis=1), n=SLOTS)
        best = max(best, float(fit.max() / np.sqrt((plane**2).sum())))
    assert plane.shape == (SLOTS, BANDS)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sounds", type=Path, nargs="*")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    spoken = sources(arguments.sounds)
    sounds = {name: spoken[name] for name in spoken if name not in LEFT_OUT}
    names = " ".join(path.name for path in arguments.sounds)
    result = {
        "benchmark": "ways to mark a sound",
        "command": f"python benchmarks/audio_mark_ways.py {names} --output {arguments.output.name}",
        "date": date.today().isoformat(),
        "machine": machine(),
        "snr_db": SNR_DB,
        "ways": ways(sounds),
        "product": product(sounds),
        "informed": informed(sounds),
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
