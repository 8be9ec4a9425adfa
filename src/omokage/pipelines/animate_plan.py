"""What an animation will cost on this machine, before any of it is done. MAIN: `plan_animation`.

Work and memory follow from the real networks (see `network_costs`), minutes from a matrix product that is timed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from omokage.errors import MemoryShortageError
from omokage.pipelines.network_costs import Costs, network_costs
from omokage.pipelines.this_machine import duration, free_bytes, matmul_rate
from omokage.talking.conditions.portrait import MOTION_FRAMES
from omokage.talking.conditions.speech import FRAME_RATE, ONE_PASS_FRAMES, OVERLAP_FRAMES, window_count
from omokage.talking.config import SamplerConfig, TransformerConfig
from omokage.talking.convert import read_index
from omokage.talking.folder import DENOISER, SPEECH_FOLDER, TEXT_FOLDER, Architecture
from omokage.talking.model import Machine, video_size
from omokage.talking.parallel import ALONE, Layout
from omokage.talking.placement import Choice, Needs, choose, profile_named, profiles, smaller
from omokage.talking.projections import BLOCK_SIGNALS
from omokage.workers import world_size

# The published encoders (specification 2.4), for the case that none are installed.
TEXT_WEIGHTS, SPEECH_WEIGHTS = 4_760_000_000, 94_400_000
SPEECH_FLOPS_PER_S = 10e9
# Of one frame of speech: three copies of what the first convolution gives, 512 channels at 3.2 kHz in float32.
SPEECH_BYTES_PER_FRAME = 3 * 128 * 512 * 4
# Share of the rate of large matrix products that whole networks reach: normalisations, activations and copies cost time
# and multiply nothing.
EFFICIENCY = 0.5
# The memory profile that the machine chooses.
AUTOMATIC = "auto"


@dataclass(frozen=True)
class Stage:
    """One part of the work: floating-point operations; bytes of weights, of caches, of what is being computed."""

    name: str
    flops: float
    weights: float
    caches: float
    working: float

    @property
    def peak(self) -> float:
        """Bytes on the device."""
        return self.weights + self.caches + self.working


@dataclass(frozen=True, kw_only=True)
class AnimationPlan:
    """Sizes, work, memory and time of an animation.

    tokens: that one pass attends to.  stages: with everything on the device.
    rate: floating-point operations a second of a large matrix product on `device`.  free: bytes free there.
    options: memory profiles that fit, in the order in which they are tried.  shortage: why there are none.
    can_shrink: whether the next start can try a profile that takes less than the one of these options.
    layout: of the processes that share the denoising.  spared: operations that other processes take off this one.
    savings: sentences on what was chosen to be left out, and what that does to work and result.
    notes: sentences on the files.
    """

    frames: int
    width: int
    height: int
    windows: int
    window_frames: int
    steps: int
    passes: int
    tokens: int
    stages: tuple[Stage, ...]
    device: str
    dtype: str
    rate: float
    free: float
    options: tuple[Choice, ...]
    shortage: str = ""
    layout: Layout = ALONE
    spared: float = 0.0
    savings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    can_shrink: bool = False

    @property
    def flops(self) -> float:
        return sum(stage.flops for stage in self.stages)

    @property
    def minutes(self) -> float:
        """Without the way of layers that wait in the machine's memory, and of what processes exchange."""
        return (self.flops - self.spared) / (EFFICIENCY * self.rate) / 60

    @property
    def minutes_per_second(self) -> float:
        """Of one second of video, where windows are long enough to be used up."""
        shown = (self.window_frames - MOTION_FRAMES) / FRAME_RATE
        work = sum(stage.flops for stage in self.stages if stage.name in WINDOW_STAGES) - self.spared
        return work / self.windows / shown / (EFFICIENCY * self.rate) / 60

    def sentence(self) -> str:
        """The plan for somebody who is about to wait."""
        room = self.options[0].sentence if self.options else self.shortage
        return (
            f"{self.frames} frames ({self.frames / FRAME_RATE:.2f} s) in {self.windows} windows take about "
            f"{duration(self.minutes)} on {self.device}; {room}"
        )

    def to_text(self) -> str:
        """All of it, for `--plan`."""
        seen = f"{self.frames} frames, {self.frames / FRAME_RATE:.2f} s"
        lines = [
            f"video     {seen} of {self.width}x{self.height} pixels",
            f"windows   {self.windows} of {self.window_frames} frames, each adds {self.window_frames - MOTION_FRAMES}",
            f"denoiser  {self.passes} passes over {self.tokens} tokens ({self.steps} steps a window)",
            f"work      {self.flops / 1e15:.4g} PFLOP",
            *([f"processes {self.layout.sentence}"] if self.spared else []),
            "",
            f"memory on {self.device} in {self.dtype}: GB of weights, caches and computation",
        ]
        for stage in self.stages:
            parts = "  ".join(f"{part / 1e9:6.2f}" for part in (stage.weights, stage.caches, stage.working))
            lines.append(
                f"  {stage.name:<10}{parts}  = {stage.peak / 1e9:6.2f}   {stage.flops / 1e15:10.4g} PFLOP"
            )
        lines += [
            f"          {self.options[0].sentence if self.options else self.shortage}",
            f"          {self.free / 1e9:.1f} GB are free on {self.device}",
            "",
            f"time      about {duration(self.minutes)}; one second of video takes {duration(self.minutes_per_second)}",
            f"          ({self.rate / 1e12:.3g} TFLOP/s measured, of which networks reach about {EFFICIENCY:.0%})",
        ]
        if self.options and self.options[0].profile.group:
            lines.append(
                "          (layers that wait in the machine's memory take longer by what their way costs)"
            )
        lines += [f"option    {sentence}" for sentence in self.savings]
        return "\n".join([*lines, *(f"note      {note}" for note in self.notes)])


WINDOW_STAGES = ("condition", "denoising", "decoding")


def plan_animation(
    sizes: Architecture,
    frames: int,
    sampler: SamplerConfig,
    machine: Machine,
    folder: Path | None,
    *,
    layout: Layout = ALONE,
    memory: str = AUTOMATIC,
    is_compiled: bool = False,
) -> AnimationPlan:
    """Plan a video of `frames` with networks of these sizes.

    folder: of their weights, when they are installed.  layout: of the processes that share the work.
    memory: name of the memory profile.
    """
    sampler = layout.sampler(sampler)
    config = sizes.transformer
    height, width = video_size(sizes)
    windows = window_count(frames, config.frames)
    costs, free = network_costs(sizes, machine.dtype), free_bytes(machine.device)
    options, shortage = memory_options(
        needs_of(sizes, costs, frames, sampler, machine, folder), machine.device, free, memory
    )
    return AnimationPlan(
        frames=frames,
        width=width,
        height=height,
        windows=windows,
        window_frames=config.frames,
        steps=sampler.steps,
        passes=windows * (sampler.steps + sampler.guided_steps),
        tokens=config.text_tokens + (config.latent_frames + 1) * config.tokens_per_frame,
        stages=stages_of(sizes, costs, frames, sampler, machine, folder),
        device=machine.device.type,
        dtype=str(machine.dtype).removeprefix("torch."),
        rate=matmul_rate(machine),
        free=free,
        options=options,
        shortage=shortage,
        layout=layout,
        spared=windows * (_step_flops(costs, sampler, ALONE) - _step_flops(costs, sampler, layout)),
        savings=savings_of(sampler, is_compiled=is_compiled),
    )


def idle_cards(machine: Machine, sampler: SamplerConfig, heads: int) -> tuple[str, ...]:
    """A sentence on graphics cards of this machine that could help, if there are any."""
    cards = torch.cuda.device_count() if machine.device.type == "cuda" else 1
    helpful = Layout.largest(cards, sampler, heads)
    if helpful <= world_size():
        return ()
    return (
        f"this machine has {cards} graphics cards; 'torchrun --no-python --nproc-per-node {helpful} omokage animate "
        "...' shares the denoising between them",
    )


def savings_of(sampler: SamplerConfig, *, is_compiled: bool) -> tuple[str, ...]:
    """What a sampler leaves out of the published one's work, and a compiler may save, for people."""
    said = []
    if sampler.guidance_scale != 1 and sampler.guided_steps < sampler.steps:
        said.append(
            f"guidance works in {sampler.guided_steps} of {sampler.steps} steps; the others take half the time and "
            "follow voice and prompt less"
        )
    if sampler.reuse_threshold:
        said.append(
            f"steps whose first layer changes by less than {sampler.reuse_threshold:.3g} of itself reuse all others; "
            "how many those are shows only in the work, so that the time above is the longest"
        )
    if is_compiled:
        said.append(
            "the first layer is compiled before the first step, which takes up to some minutes; what that saves later "
            "is not in the time above"
        )
    return tuple(said)


def needs_of(
    sizes: Architecture,
    costs: Costs,
    frames: int,
    sampler: SamplerConfig,
    machine: Machine,
    folder: Path | None = None,
) -> Needs:
    """What the choice of a memory profile has to know. Raises InputError for damaged weights in `folder`."""
    layers = sizes.transformer.layers
    text, speech = _encoder_bytes(sizes, folder)
    heard, is_card = speech + _hearing_bytes(frames), machine.device.type == "cuda"
    remembered = speech_bytes(sizes.transformer, frames, machine.dtype.itemsize)
    beside = 0.0 if is_card else remembered  # on a processor it is the device that has to have room
    return Needs(
        layers=layers,
        layer=costs.layer,
        waiting=costs.waiting,
        rest=costs.kept - layers * costs.layer,
        preparing=costs.whole - layers * costs.layer,
        caches=beside + cache_bytes(sizes.transformer, sampler, machine.dtype.itemsize),
        denoising=(costs.denoise if sampler.together else costs.denoise_half).held,
        denoising_single=costs.denoise_half.held,
        autoencoder=costs.autoencoder,
        encoding=costs.encode_three.held,
        decoding=costs.decode.held,
        decoding_lean=costs.decode_lean.held,
        # On a card a prompt that has no room goes to the processor.
        encoders=heard if is_card else max(heard + beside, text),
        text=text if is_card else 0.0,
        loading=_loading_bytes(costs, machine, folder),
        speech=remembered if is_card else 0.0,
    )


def memory_options(
    needs: Needs, device: torch.device, free: float, memory: str = AUTOMATIC
) -> tuple[tuple[Choice, ...], str]:
    """The chosen profile and those that take less; none, and why, when it does not fit.

    memory: name of the profile, or 'auto' for the first that fits; on a processor nothing waits unless asked to.
    """
    is_card, free_host = device.type == "cuda", free_bytes(torch.device("cpu"))
    usual = tuple(profile for profile in profiles() if is_card or not profile.group)
    try:
        chosen = choose(needs, free, free_host, usual if memory == AUTOMATIC else [profile_named(memory)])
    except MemoryShortageError as error:
        return (), str(error)
    options = smaller(chosen, needs, free_host)
    return tuple(option for option in options if option is chosen or option.profile in usual), ""


def stages_of(
    sizes: Architecture,
    costs: Costs,
    frames: int,
    sampler: SamplerConfig,
    machine: Machine,
    folder: Path | None,
) -> tuple[Stage, ...]:
    """What every part of the work takes, with everything on the device."""
    config, size = sizes.transformer, machine.dtype.itemsize
    windows = window_count(frames, config.frames)
    denoise = costs.denoise if sampler.guided_steps and sampler.together else costs.denoise_half
    work = windows * _step_flops(costs, sampler, ALONE)
    text_bytes, speech_bytes = _encoder_bytes(sizes, folder)
    tokens = config.layers * config.tokens_per_frame * config.width * size
    caches = cache_bytes(config, sampler, size)
    resident = costs.kept + costs.autoencoder
    heard = _hearing_bytes(frames)
    first, three = costs.encode_one, costs.encode_three
    pictures = max(costs.autoencoder, costs.reference_weights)
    return (
        # A multiply-add a weight and token, and two bytes a weight.
        Stage("prompt", text_bytes * config.text_tokens, text_bytes, 0, 0),
        Stage(
            "portrait",
            first.flops + costs.reference.flops,
            pictures,
            tokens,
            max(first.held, costs.reference.held),
        ),
        Stage("speech", SPEECH_FLOPS_PER_S * frames / FRAME_RATE, speech_bytes, 0, heard),
        Stage("set-up", 0, costs.whole, tokens + caches, 0),
        Stage("condition", windows * three.flops, resident, caches, three.held),
        Stage("denoising", work, resident, caches, denoise.held),
        Stage("decoding", windows * costs.decode.flops, resident, caches, costs.decode.held),
    )


def _step_flops(costs: Costs, sampler: SamplerConfig, layout: Layout) -> float:
    """Of all steps of a window, in one process of this layout."""
    guided = sampler.guided_steps
    both, half = costs.denoise.flops / layout.halves, costs.denoise_half.flops
    return (guided * both + (sampler.steps - guided) * half) / layout.parts


def cache_bytes(config: TransformerConfig, sampler: SamplerConfig, size: int) -> float:
    """Bytes of everything that is made before a window's loop, in numbers of `size` bytes."""
    row = config.width * size
    reference = 2 * config.layers * config.tokens_per_frame * row
    speech = 2 * config.layers * config.latent_frames * (config.audio.tokens if config.audio else 0) * row
    table = sampler.steps * (BLOCK_SIGNALS * config.layers + 2) * row
    latents = config.latent_frames * config.latent_channels * config.latent_height * config.latent_width
    # Of the speech: the silence, this window's, and both of them joined.
    heard = speech * (4 if sampler.together else 2)
    return float(
        reference + heard + table + sampler.steps * latents * 4 + _residual_bytes(config, sampler, row)
    )


def speech_bytes(config: TransformerConfig, frames: int, size: int) -> float:
    """Bytes of the machine's memory that grow with the speech, in numbers of `size` bytes: its features, which a
    smaller memory profile projects anew, and what they became, the tokens of every window."""
    if config.audio is None:
        return 0.0
    audio, windows = config.audio, window_count(frames, config.frames)
    features = -(-frames // config.frames) * config.frames * audio.layers * audio.channels
    tokens = windows * config.latent_frames * audio.tokens * audio.width
    return float((features + tokens) * size)


def _residual_bytes(config: TransformerConfig, sampler: SamplerConfig, row: int) -> int:
    """What later steps reuse: of the first layer and of the rest, for each kind of pass."""
    if not sampler.reuse_threshold:
        return 0
    halves = 2 if sampler.guided_steps else 1
    # Steps beyond the interval of guidance are another kind than both halves together.
    if sampler.together and 0 < sampler.guided_steps < sampler.steps:
        halves += 1
    return 2 * halves * config.latent_frames * config.tokens_per_frame * row


def _encoder_bytes(sizes: Architecture, folder: Path | None) -> tuple[float, float]:
    """Weights of the text encoder in bfloat16 and of the speech encoder in float32."""
    if sizes.is_small:
        return 0.0, 0.0
    published = (2.0 * TEXT_WEIGHTS, 4.0 * SPEECH_WEIGHTS)
    if folder is None:
        return published
    found = [
        sum(file.stat().st_size for file in (folder / name).glob("*.safetensors"))
        for name in (TEXT_FOLDER, SPEECH_FOLDER)
    ]
    return float(found[0] or published[0]), float(found[1] or published[1])


def _hearing_bytes(frames: int) -> float:
    """What the speech encoder holds of a speech: a long one is read in pieces, with their neighbours' ends."""
    return float(SPEECH_BYTES_PER_FRAME * min(frames, ONE_PASS_FRAMES + 2 * OVERLAP_FRAMES))


def _loading_bytes(costs: Costs, machine: Machine, folder: Path | None) -> float:
    """Of the machine's memory while the denoiser is loaded there.

    Files in the machine's precision are mapped, and the system takes their pages back at need; any others are converted
    as a whole. The published ones are in 16 bits.
    """
    if folder is None:
        is_mapped = machine.dtype.itemsize == 2
    else:
        is_mapped = read_index(folder, DENOISER).total_bytes == costs.whole
    return 0.0 if is_mapped else float(costs.whole)
