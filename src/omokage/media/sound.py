"""The sound of a file piece by piece, as the decoder's process gives it."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import av

from omokage.errors import MediaError
from omokage.media.demux import Pulse, check_codec, is_out_of_memory, open_container, video_stream
from omokage.media.limits import InputLimits
from omokage.media.records import Alive, RawSound, SoundTask
from omokage.media.source import Source

_HIGHEST_RATE = 768_000


def sound_of(source: Source, task: SoundTask, limits: InputLimits) -> Iterator[RawSound | Alive]:
    """The first sound track; nothing when there is none. Raises MediaError that names the time reached."""
    with open_container(source, limits) as container:
        stream = next(iter(container.streams.audio), None)
        if stream is None:
            return
        check_codec(stream, source.path, limits)
        if not 0 < stream.rate <= _HIGHEST_RATE or stream.channels < 1:
            raise MediaError(
                f"the sound of {source.path} says that it has {stream.channels} channels of {stream.rate} samples a "
                "second; export it again, as AAC or WAV"
            )
        has_video = video_stream(container) is not None
        announced_s = (container.duration or 0) / av.time_base
        channels, done = min(2, stream.channels), 0
        rate = task.sample_rate or stream.rate
        converter = av.AudioResampler(format="flt", layout="mono" if channels == 1 else "stereo", rate=rate)
        pulse = Pulse()
        for packet in container.demux(stream):
            yield from pulse.beat()
            try:
                pieces = [piece for frame in packet.decode() for piece in converter.resample(frame)]
            except (av.FFmpegError, ValueError) as error:
                if is_out_of_memory(error):
                    raise MemoryError from error
                if not done:
                    continue  # many files begin with a packet that cannot be decoded alone
                raise MediaError(damaged_sound(source.path, done / rate)) from error
            if packet.size == 0:  # the end: the converter still holds a few samples
                pieces += converter.resample(None)
            for piece in pieces:
                start = None if piece.pts is None else piece.pts * (piece.time_base or Fraction(1, rate))
                done += piece.samples
                data = memoryview(piece.planes[0])[: piece.samples * channels * 4]
                yield RawSound(start, rate, channels, has_video, announced_s, data)


def damaged_sound(path: object, reached_s: float) -> str:
    """The sentence for it."""
    return f"the sound of {path} is damaged after {reached_s:.2f} s; copy or export the recording again"
