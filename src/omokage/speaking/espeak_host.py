"""Runs eSpeak NG as a program of its own: text in, sound and timed phonemes out.

eSpeak NG is under the GPL: nothing of it is part of omokage, and it is never loaded into omokage's process. This module
is started by `speaking.voices`, reads one JSON request from standard input and writes one line of JSON, then samples
(int16, little-endian). Structures and constants are those of eSpeak NG's `speak_lib.h`.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_RETRIEVAL = 2  # AUDIO_OUTPUT_SYNCHRONOUS: sound goes to the callback, nothing is played
_PHONEME_EVENTS, _IPA, _DONT_EXIT = 0x0001, 0x0002, 0x8000
_UTF8, _RATE_PARAMETER = 1, 1
_END_EVENT, _PHONEME_EVENT = 0, 7
_CHARACTER = 1  # positions count characters


class _Id(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    )


class _Voice(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("languages", ctypes.c_char_p),
        ("identifier", ctypes.c_char_p),
        ("gender", ctypes.c_ubyte),
        ("age", ctypes.c_ubyte),
        ("variant", ctypes.c_ubyte),
        ("xx1", ctypes.c_ubyte),
        ("score", ctypes.c_int),
        ("spare", ctypes.c_void_p),
    )


_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


def load_library() -> tuple[ctypes.CDLL, bytes | None]:
    """The library, and the folder of its data (None: its own). The system's comes first, then `espeakng-loader`'s.

    Raises OSError when neither is there.
    """
    found = ctypes.util.find_library("espeak-ng")
    if found:
        return ctypes.CDLL(found), None
    try:
        import espeakng_loader
    except ImportError as error:
        raise OSError("no eSpeak NG") from error
    return ctypes.CDLL(espeakng_loader.get_library_path()), str(espeakng_loader.get_data_path()).encode()


def speak(library: ctypes.CDLL, request: dict[str, Any], data: bytes | None) -> tuple[dict[str, Any], bytes]:
    """The answer and the samples; its "error" says what was not understood."""
    rate = library.espeak_Initialize(_RETRIEVAL, 0, data, _PHONEME_EVENTS | _IPA | _DONT_EXIT)
    if rate <= 0:
        return {"error": "data"}, b""
    if request.get("list"):
        return {"voices": sorted(dict(_voices(library)))}, b""
    name, plus, variant = str(request["voice"]).partition("+")
    identifier = dict(_voices(library)).get(name, name)
    # The library takes any variant, and speaks as usual when it does not know it.
    variants = _variants(library)
    if plus and variant not in variants and not variant.isdecimal():
        return {"error": "variant", "variants": variants}, b""
    if library.espeak_SetVoiceByName((identifier + plus + variant).encode()) != 0:
        return {"error": "voice"}, b""
    library.espeak_SetParameter(_RATE_PARAMETER, int(request["words_per_minute"]), 0)
    sound: list[bytes] = []
    phonemes: list[tuple[str, float]] = []

    def receive(samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            sound.append(ctypes.string_at(samples, 2 * count))
        place = 0
        while events[place].type != _END_EVENT:
            if events[place].type == _PHONEME_EVENT:
                symbol = events[place].id.string.decode("utf-8", "ignore")
                phonemes.append((symbol, events[place].sample / rate))
            place += 1
        return 0

    callback = _CALLBACK(receive)
    library.espeak_SetSynthCallback(callback)
    text = str(request["text"]).encode() + b"\0"
    library.espeak_Synth(text, len(text), 0, _CHARACTER, 0, _UTF8, None, None)
    library.espeak_Synchronize()
    return {"sample_rate": rate, "phonemes": phonemes}, b"".join(sound)


def _variants(library: ctypes.CDLL) -> list[str]:
    path = ctypes.c_char_p()
    library.espeak_Info.restype = ctypes.c_char_p
    library.espeak_Info(ctypes.byref(path))
    folder = Path(os.fsdecode(path.value or b"")) / "voices" / "!v"
    return sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []


def _voices(library: ctypes.CDLL) -> Iterator[tuple[str, str]]:
    """Languages, such as en-us, and what the library calls their voices."""
    library.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_Voice))
    voices = library.espeak_ListVoices(None)
    place = 0
    while voices[place]:
        voice = voices[place].contents
        if voice.languages and voice.identifier:
            # A list of a priority byte and a name each, ended by a byte 0.
            yield voice.languages[1:].split(b"\0")[0].decode(), voice.identifier.decode()
        place += 1


def main() -> None:
    request = json.loads(sys.stdin.buffer.read())
    try:
        library, data = load_library()
        answer, sound = speak(library, request, data)
    except OSError:
        answer, sound = {"error": "library"}, b""
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n" + sound)


if __name__ == "__main__":
    main()
