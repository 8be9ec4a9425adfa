"""Voices that read a text aloud: one interface, eSpeak NG as the default, anybody's own by an entry point.

A synthesizer is any class with `synthesize` and `languages`; a package makes its own known by an entry point of the
group `omokage.voices`. A recording of the text by a person always looks and sounds better: give it as the voice.
"""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from omokage.errors import InputError, MissingDependencyError
from omokage.media.clip import Audio
from omokage.media.process import run_module
from omokage.speaking.phonemes import Phoneme

GROUP = "omokage.voices"
WORDS_PER_MINUTE = 160
HOW_TO_INSTALL = (
    "install it with 'sudo apt-get install espeak-ng' or 'pip install espeakng-loader', or give a recording of the "
    "text with --audio"
)
_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class SpokenText:
    """sound: mono.  phonemes: in order, with times on the sound's clock; empty when the voice does not tell them."""

    sound: Audio
    phonemes: tuple[Phoneme, ...]


class Synthesizer(Protocol):
    """Reads texts aloud."""

    def languages(self) -> tuple[str, ...]:
        """Names that `synthesize` takes for its voice, such as 'en-us'."""
        ...

    def synthesize(self, text: str, voice: str) -> SpokenText:
        """Raises InputError for a voice it does not have, MissingDependencyError when the engine is not there."""
        ...


class EspeakVoice:
    """eSpeak NG: small, fast, a hundred languages, sounds like a machine.

    It reads Japanese in kana; kanji are read by Open JTalk's dictionary first, where `pyopenjtalk-plus` is installed.
    """

    def languages(self) -> tuple[str, ...]:
        return tuple(_ask({"list": True})[0]["voices"])

    def synthesize(self, text: str, voice: str) -> SpokenText:
        if voice.split("+")[0] == "ja":
            text = in_kana(text)
        request = {"text": text, "voice": voice, "words_per_minute": WORDS_PER_MINUTE}
        answer, samples = _ask(request)
        if answer.get("error") == "variant":
            name, _, variant = voice.partition("+")
            raise InputError(
                f"the voice '{name}' has no variant '{variant}'; take one of {', '.join(answer['variants'])}"
            )
        if answer.get("error"):
            raise InputError(
                f"there is no voice '{voice}'; 'omokage voices' lists those that are installed, such as en-us or ja"
            )
        rate = int(answer["sample_rate"])
        pcm = samples[:, None].astype(np.float32)
        sound = Audio(pcm / np.float32(32768), rate)
        return SpokenText(sound, _timed(answer["phonemes"], len(samples) / rate))


def speak_text(text: str, voice: str) -> SpokenText:
    """Read a text aloud. voice: a name of eSpeak NG's, or 'package:name' of a package that offers voices.

    Emoji and other signs that nobody says are left out, web addresses are read by their host. Raises InputError when
    nothing is left to say or there is no such voice, MissingDependencyError.
    """
    said = sayable(text)
    if not any(c.isalnum() for c in said):
        what = "is empty" if not text.strip() else "holds no word"
        raise InputError(f"the text {what}; give one or more sentences to say")
    package, _, name = voice.rpartition(":")
    spoken = (_plug_in(package) if package else EspeakVoice()).synthesize(said, name)
    if not len(spoken.sound.samples):
        raise InputError(
            f"the voice '{voice}' says nothing for this text; is it written in the voice's language?"
        )
    return spoken


def installed_voices() -> dict[str, tuple[str, ...]]:
    """What can be given as voice, by engine: eSpeak NG's names, and 'package:name' of others."""
    found: dict[str, tuple[str, ...]] = {}
    try:
        found["espeak"] = EspeakVoice().languages()
    except MissingDependencyError:
        found["espeak"] = ()
    for point in entry_points(group=GROUP):
        found[point.name] = tuple(f"{point.name}:{name}" for name in _made(point).languages())
    return found


def misread(text: str, voice: str) -> tuple[str, ...]:
    """A sentence when the voice will spell a part of the text, letter by letter, since it is of another script."""
    language = voice.split("+")[0].split("-")[0]
    if ":" in voice:
        return ()
    is_asian = any(unicodedata.name(c, "").startswith(("HIRAGANA", "KATAKANA", "CJK")) for c in text)
    if is_asian and language not in ("ja", "cmn", "yue", "hak", "zh"):
        return (f"the voice '{voice}' cannot read Japanese or Chinese; choose --voice ja or cmn",)
    if language == "ja" and re.search(r"[A-Za-z]{2}", _ADDRESS.sub("", text)):
        return ("the voice 'ja' spells Latin words letter by letter; write them in kana",)
    return ()


def sayable(text: str) -> str:
    """The text without what nobody says: emoji, control and private characters; addresses by their host."""
    text = "".join(_SAID_AS.get(c, c) for c in text)
    text = unicodedata.normalize("NFKC", text)
    text = _ADDRESS.sub(r"\1", text)
    # A line that ends without a mark ends a sentence all the same.
    text = re.sub(r"(?<=[^\s.!?;:,。、！？])[ \t]*\n\s*", ". ", text.strip())
    kept = (c if c in _JOINERS or unicodedata.category(c) not in _UNSAID else " " for c in text)
    return re.sub(r"\s+", " ", "".join(kept)).strip()


def in_kana(text: str) -> str:
    """A Japanese text as it is read. Raises MissingDependencyError for kanji when no dictionary is installed."""
    try:
        import pyopenjtalk
    except ImportError as error:
        if any("CJK UNIFIED" in unicodedata.name(c, "") for c in text):
            raise MissingDependencyError(
                "reading kanji aloud needs a dictionary; install it with 'pip install pyopenjtalk-plus', write the "
                "text in kana, or give a recording of it with --audio"
            ) from error
        return text
    # Sentence by sentence, since the reading drops the marks that make a pause.
    parts = re.split(r"([、。！？!?]+|[,.]+(?![0-9A-Za-z]))", text)
    return "".join(
        part if i % 2 else str(pyopenjtalk.g2p(part, kana=True)) for i, part in enumerate(parts) if part
    )


_UNSAID = {"So", "Sk", "Cc", "Cf", "Cs", "Co", "Cn"}
_JOINERS = {"\u200c", "\u200d"}  # they tell words apart in Persian and Indic scripts
# Before compatibility forms are replaced, or 1½ would become 11/2 and 10² become 102.
_SAID_AS = {
    "\u00ad": "",
    "\u200b": "",
    "½": " 1/2",
    "¼": " 1/4",
    "¾": " 3/4",
    "²": "^2",
    "³": "^3",
    "°": " degrees ",
}
# The host of an address; what follows it ends at a blank, a letter of another script, or closing marks.
_ADDRESS = re.compile(
    r"https?://(?:www\.)?([A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*)(?::\d+)?(?:[/?#][!-~]*?)?(?=[.,;:!?)\]'\"]*(?:[^!-~]|$))"
)


def _plug_in(package: str) -> Synthesizer:
    for point in entry_points(group=GROUP):
        if point.name == package:
            return _made(point)
    raise MissingDependencyError(
        f"no installed package offers voices by the name '{package}'; 'omokage voices' lists what is there"
    )


def _made(point: EntryPoint) -> Synthesizer:
    try:
        engine: Synthesizer = point.load()()
    except Exception as error:  # foreign code may fail in any way
        raise MissingDependencyError(
            f"the voices of '{point.name}' cannot be loaded ({type(error).__name__}: {error}); see to its package"
        ) from error
    return engine


def _timed(starts: list[tuple[str, float]], end_s: float) -> tuple[Phoneme, ...]:
    """Symbols with the times at which they start -> phonemes, each up to the next.

    Symbols in brackets, such as (en), tell of a change of language and are no sound.
    """
    starts = [(symbol, start) for symbol, start in starts if not symbol.startswith("(")]
    stops = [start for _, start in starts[1:]] + [end_s]
    return tuple(
        Phoneme(symbol, start, stop)
        for (symbol, start), stop in zip(starts, stops, strict=True)
        if stop > start
    )


def _ask(request: dict[str, Any]) -> tuple[dict[str, Any], NDArray[np.int16]]:
    sent = json.dumps(request).encode()
    answer, _, samples = run_module("omokage.speaking.espeak_host", sent, timeout_s=_TIMEOUT_S).partition(
        b"\n"
    )
    parsed: dict[str, Any] = json.loads(answer)
    if parsed.get("error") in ("library", "data"):
        raise MissingDependencyError(
            f"eSpeak NG, which reads texts aloud, is not installed; {HOW_TO_INSTALL}"
        )
    return parsed, np.frombuffer(samples, dtype="<i2")
