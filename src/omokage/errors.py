"""The exception tree. Catch `OmokageError` to catch them all.

    OmokageError
    ├── InputError              something the user gave cannot be used
    │   ├── MediaError          a picture, video or sound file cannot be read
    │   ├── NoFaceError         no usable face where one is needed
    │   ├── CaptureRefusedError the recording is hopeless for an avatar (see `omokage check`)
    │   ├── BundleError         an avatar file is damaged, foreign or from a newer version
    │   ├── WeightsError        a model's weights are missing, damaged or of another model
    │   └── ConsentError        nobody agreed to it, or not to this (see `omokage consent`)
    ├── OutputError             a result cannot be written (no room, no permission, bad suffix)
    │   └── AuditError          the audit log cannot be written, or is not as it was written: nothing is released
    ├── MissingDependencyError  an optional package or a system library is not there
    ├── MemoryShortageError     this machine has too little memory for what was asked
    ├── DivergedError           a training's numbers have overflowed
    └── InternalError           a promise between our own stages was broken

Every message is one sentence or two that say what was got, what is needed and what to do.
"""

from __future__ import annotations


class OmokageError(Exception):
    """Base of all errors that omokage raises on purpose; `exit_code` is the command line's status."""

    exit_code = 1


class InputError(OmokageError):
    """Something the user gave cannot be used."""

    exit_code = 2


class MediaError(InputError):
    """A picture, video or sound file cannot be read."""


class NoFaceError(InputError):
    """No usable face where one is needed."""


class CaptureRefusedError(InputError):
    """The recording is hopeless for an avatar; the message names the worst findings."""


class BundleError(InputError):
    """An avatar file is damaged, foreign or from a newer version."""


class WeightsError(InputError):
    """A model's weights are missing, damaged or of another model; the message says what to pull or to add."""


class ConsentError(InputError):
    """Nobody agreed to it, or not to this; the message says what is missing and how to record it."""

    exit_code = 5


class OutputError(OmokageError):
    """A result cannot be written: no room, no permission, a suffix that names no known format."""

    exit_code = 3


class AuditError(OutputError):
    """The audit log cannot be written, or is not as it was written; then nothing is released."""


class MissingDependencyError(OmokageError):
    """An optional package or a system library is not there; the message names the install command."""

    exit_code = 4


class MemoryShortageError(OmokageError):
    """This machine has too little memory for what was asked; the message says how much is needed."""

    exit_code = 71


class DivergedError(OmokageError):
    """A training's numbers have overflowed; the message says which settings train more carefully."""


class InternalError(OmokageError):
    """A promise between our own stages was broken: a defect of omokage, not of the input."""

    exit_code = 70
