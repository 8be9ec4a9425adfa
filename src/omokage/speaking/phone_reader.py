"""Reads the sounds of a whole voice, which somebody's recording is: `read_phones`, MAIN: `driven_by_whole_voice`.

PocketSphinx (Huggins-Daines et al. 2006) finds the likeliest sequence of English phones and when each is said. Its
acoustic model, which is in its wheel, has learned from real voices; the `reader` from synthetic ones. Each
sees what the other misses (docs/research/speaking.md), so the mouth takes the middle of both. The likeliest sequence is
known at the end only, so a live voice is left to the reader alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import as_file, files
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter1d

from omokage.config import Progress, ProgressCallback, ignore_progress
from omokage.errors import MissingDependencyError
from omokage.speaking.driver import CLOSED, REST, Articulation, driven_by_voice, speaking
from omokage.speaking.hearing import HOPS_PER_S
from omokage.speaking.phonemes import Phoneme, viseme_weights
from omokage.talking.conditions.log_mel import HOP_SAMPLES
from omokage.talking.conditions.speech import SAMPLE_RATE

Float = NDArray[np.float64]
Float32 = NDArray[np.float32]

# Of the mouth; the rest is the reader's. Lips that only one of the two shuts would be half open with a half, and phones
# tell m, b and p better than the reader.
PHONES_SHARE, SHUT_BY_PHONES = 0.5, 0.75
# A stretch is at least so long, unless a long pause ends it, and at most: memory stays small.
STRETCH_S, LONGEST_S = 10.0, 30.0
PAUSE_HOPS, LONG_PAUSE_HOPS = 20, 100
NEAR_HOPS = 6  # to either side; the closure of a p is as silent as a pause, but shorter
LOUD = 0.2  # of `Articulation.level`, from which on phones are believed
MARGIN_HOPS = 15  # of what is around a stretch
# Of the search: weight of which phone follows which, and how unlikely a path may become beside the best.
_SEARCH = {"lw": 2.0, "beam": 1e-20, "pbeam": 1e-20}
# ARPABET -> IPA
_IPA = {
    "AA": "ɑ", "AE": "æ", "AH": "ə", "AO": "ɔ", "AW": "aʊ", "AY": "aɪ", "B": "b", "CH": "tʃ", "D": "d", "DH": "ð",
    "EH": "ɛ", "ER": "ɝ", "EY": "eɪ", "F": "f", "G": "g", "HH": "h", "IH": "ɪ", "IY": "i", "JH": "dʒ", "K": "k",
    "L": "l", "M": "m", "N": "n", "NG": "ŋ", "OW": "oʊ", "OY": "ɔɪ", "P": "p", "R": "r", "S": "s", "SH": "ʃ",
    "T": "t", "TH": "θ", "UH": "ʊ", "UW": "u", "V": "v", "W": "w", "Y": "j", "Z": "z", "ZH": "ʒ",
}  # fmt: skip


def driven_by_whole_voice(voice: Float32, on_progress: ProgressCallback = ignore_progress) -> Articulation:
    """What a voice (S,) mono at 16 kHz lets the mouth do, where all of it is there before anything is said.

    on_progress: of every stretch, in seconds, once the network has read all of it. Raises MissingDependencyError.
    """
    heard = driven_by_voice(voice)
    is_speech = speaking(heard.visemes)
    middles = (np.arange(len(is_speech)) + 0.5) / HOPS_PER_S
    weights = viseme_weights(read_phones(voice, is_speech > 0, on_progress), middles)
    # Whatever noise or the end of a breath sounds like: where nobody speaks, or nothing near is loud, nothing is read.
    share = is_speech * np.clip(maximum_filter1d(heard.level, 2 * NEAR_HOPS + 1) / LOUD, 0, 1)
    weights *= share[:, None]
    weights[:, REST] += 1 - share
    trust = PHONES_SHARE + (SHUT_BY_PHONES - PHONES_SHARE) * weights[:, CLOSED, None]
    return replace(heard, visemes=trust * weights + (1 - trust) * heard.visemes)


def read_phones(
    voice: Float32, is_speech: NDArray[np.bool_], on_progress: ProgressCallback = ignore_progress
) -> list[Phoneme]:
    """The phones of a voice (S,) mono at 16 kHz, in order; is_speech (N,): the hops of 10 ms that are looked at."""
    found: list[Phoneme] = []
    seconds, decoder = len(is_speech) / HOPS_PER_S, None
    for first, stop in stretches(is_speech):
        decoder = decoder or _decoder()
        samples = voice[first * HOP_SAMPLES : stop * HOP_SAMPLES]
        decoder.start_utt()
        decoder.process_raw(as_pcm(samples), full_utt=True)
        decoder.end_utt()
        found += [
            Phoneme(_IPA[part.word], (first + part.start_frame) / HOPS_PER_S, (first + part.end_frame + 1) / HOPS_PER_S)
            for part in decoder.seg() or ()
            if part.word in _IPA  # the others are silence and noises
        ]  # fmt: skip
        on_progress(Progress("hearing", stop / HOPS_PER_S, seconds))
    on_progress(Progress("hearing", seconds, seconds))
    return found


def stretches(is_speech: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """First hop, and the one behind the last, of each part of a voice (N,) that is read at once, in order.

    A part ends at a long pause, at the first one after `STRETCH_S`, or, where that is too late, at the last before.
    """
    spoken = np.flatnonzero(is_speech)
    silent = np.diff(spoken, append=len(is_speech) + LONG_PAUSE_HOPS)
    ends, is_long = spoken[silent > PAUSE_HOPS], silent[silent > PAUSE_HOPS] > LONG_PAUSE_HOPS
    at, stop = 0, 0
    while at < len(spoken):
        first, latest = int(spoken[at]), int(spoken[at] + LONGEST_S * HOPS_PER_S)
        near = slice(np.searchsorted(ends, first), np.searchsorted(ends, latest))
        fits = ends[near][is_long[near] | (ends[near] >= first + STRETCH_S * HOPS_PER_S)]
        end = int(fits[0] if len(fits) else ends[near][-1] if len(ends[near]) else latest) + 1
        begin, stop = max(stop, first - MARGIN_HOPS), min(len(is_speech), end + MARGIN_HOPS)
        yield begin, stop
        at = int(np.searchsorted(spoken, stop))


def as_pcm(samples: Float32) -> bytes:
    """Samples (S,) in the 16 bits that PocketSphinx hears, as loud as they can be."""
    loudest = float(np.abs(samples).max(initial=0)) or 1.0
    return np.round(samples / loudest * 32000).astype("<i2").tobytes()


def _decoder() -> Any:
    try:
        from pocketsphinx import Decoder
    except ImportError as error:
        raise MissingDependencyError(
            "reading a voice needs a package that is not installed; run 'pip install pocketsphinx'"
        ) from error
    # Of the wheel, whatever else the system or POCKETSPHINX_PATH has.
    with as_file(files("pocketsphinx") / "model" / "en-us") as model:
        return Decoder(
            hmm=str(model / "en-us"),
            allphone=str(model / "en-us-phone.lm.bin"),
            dict=None,
            lm=None,
            samprate=SAMPLE_RATE,
            loglevel="FATAL",
            **_SEARCH,
        )
