"""Which of a model's weights are on the device and when: profiles of memory, and the choice between them.

A profile is applied from outside to a network that was loaded into the machine's memory; the networks know nothing
of it. All profiles but those with weights of 8 bits give the numbers of a network that is on the device as a whole.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from omokage.config import Config
from omokage.errors import InputError, MemoryShortageError
from omokage.talking.lean import make_lean
from omokage.talking.offload import WaitingBlocks
from omokage.talking.quantize import WeightFormat, quantize_linears
from omokage.talking.transformer import Transformer
from omokage.talking.vae import CausalVae

# What a driver and its libraries take before the first tensor, and what fragments leave unused.
RESERVED_BYTES, FRAGMENTED = 0.7e9, 0.05
# What an exception without a kind of its own says: of the driver and of pinned memory, of the libraries for products
# and convolutions, of the machine.
SHORTAGE_WORDS = (
    "out of memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "cudnn_status_internal_error_host_allocation_failed",
    "can't allocate memory",
    "cannot allocate memory",
)

Result = TypeVar("Result")


@dataclass(frozen=True)
class Profile(Config):
    """A way to use a device's memory.

    name: for people.  weights: format of the layers' weights, a name of `WeightFormat`.
    group: layers that come to the device together; 0: all of them stay there.
    ahead: the next group travels while one computes.
    is_lean: the autoencoder decodes in a third of the memory.
    together: both halves of guidance in one batch.
    """

    name: str
    weights: str
    group: int
    ahead: bool
    is_lean: bool
    together: bool

    @property
    def is_exact(self) -> bool:
        """Whether the weights are those that were loaded."""
        return self.weights == WeightFormat.EXACT.value


def resident() -> Profile:
    """Everything is on the device all the time."""
    return Profile("resident", "exact", group=0, ahead=False, is_lean=False, together=True)


def resident_lean() -> Profile:
    """The same with a lean decoder: for cards of 24 GB."""
    return Profile("resident-lean", "exact", group=0, ahead=False, is_lean=True, together=True)


def grouped() -> Profile:
    """Two layers compute while the next two travel: for cards of 12 GB."""
    return Profile("grouped", "exact", group=2, ahead=True, is_lean=True, together=True)


def layerwise() -> Profile:
    """One layer after the other, and one half of guidance after the other: the least memory of the device."""
    return Profile("layerwise", "exact", group=1, ahead=False, is_lean=True, together=False)


def grouped_8bit() -> Profile:
    """As `grouped`, in half of the machine's memory, with a small difference."""
    return Profile("grouped-8bit", "int8", group=2, ahead=True, is_lean=True, together=True)


def profiles() -> tuple[Profile, ...]:
    """All of them in the order in which they are tried; the one that is not exact last."""
    return resident(), resident_lean(), grouped(), layerwise(), grouped_8bit()


def profile_named(name: str) -> Profile:
    """The profile of this name. Raises InputError for a name that there is none of."""
    for profile in profiles():
        if profile.name == name:
            return profile
    names = ", ".join(profile.name for profile in profiles())
    raise InputError(f"there is no memory profile '{name}'; choose one of {names}")


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Bytes that a model takes on any device.

    layers: number.  layer: weights of one; `waiting`: of one that waits elsewhere, which keeps what works once.
    rest: weights of the denoiser outside its layers; `preparing`: those before what works once was freed.
    caches: of all conditions.  denoising, denoising_single: what one pass holds, with both halves of guidance and one.
    autoencoder: its weights.  encoding, decoding, decoding_lean: what they hold.
    encoders: weights and work of the encoders of speech and prompt, as far as they must be on the device.
    text, loading: of the machine's memory while text encoder and denoiser are loaded; 0 for files that are only mapped.
    speech: of the machine's memory from the first window to the last, for what is kept of the whole speech.
    """

    layers: int
    layer: float
    waiting: float
    rest: float
    preparing: float
    caches: float
    denoising: float
    denoising_single: float
    autoencoder: float
    encoding: float
    decoding: float
    decoding_lean: float
    encoders: float
    text: float
    loading: float
    speech: float = 0.0


@dataclass(frozen=True)
class Choice:
    """A profile, and bytes that it is expected to take at most on the device and of the machine."""

    profile: Profile
    device_bytes: float
    host_bytes: float

    @property
    def sentence(self) -> str:
        """For the user."""
        where = f"{self.device_bytes / 1e9:.1f} GB on the device"
        if self.host_bytes >= 0.05e9:  # a short speech's would be told as 0.0 GB
            where += f" and {self.host_bytes / 1e9:.1f} GB of the machine's memory"
        exact = "exact" if self.profile.is_exact else "nearly exact"
        return f"memory profile '{self.profile.name}' ({exact}) is expected to take {where}"


def expected(profile: Profile, needs: Needs) -> Choice:
    """What a profile takes at most of the device, and of the machine for what waits there."""
    share = 1.0 if profile.is_exact else 0.5
    at_once = profile.group * (2 if profile.ahead else 1)
    every = needs.layers * needs.layer * share
    moving = min(at_once, needs.layers) * needs.waiting * share if profile.group else every
    staying = 0.0 if profile.group else every  # what waits is only there while the denoiser works
    passing = needs.denoising if profile.together else needs.denoising_single
    coding = max(needs.encoding, needs.decoding_lean if profile.is_lean else needs.decoding)
    # The reference network, in the same profile, is smaller than the denoiser before it was freed of anything.
    peaks = (
        needs.preparing + moving,
        needs.rest + needs.autoencoder + moving + passing,
        needs.rest + needs.autoencoder + staying + coding,
    )
    on_device = RESERVED_BYTES + (1 + FRAGMENTED) * max(needs.caches + max(peaks), needs.encoders)
    return Choice(profile, on_device, max(needs.text, needs.speech + _host_bytes(profile, needs, share)))


def _host_bytes(profile: Profile, needs: Needs, share: float) -> float:
    """Of the machine's memory: what waits there, and its loading, group after group."""
    if not profile.group:
        return 0.0 if profile.is_exact else needs.loading
    # PyTorch takes pinned memory in powers of two; a profile that was tried before has given its own back (`let_go`).
    piece = float(2 ** math.ceil(math.log2(max(profile.group * needs.waiting * share, 1))))
    return max(math.ceil(needs.layers / profile.group) * piece, needs.loading + piece)


def choose(
    needs: Needs, free_device: float, free_host: float, candidates: Sequence[Profile] | None = None
) -> Choice:
    """The first of the candidates (default: `profiles()`) that fits into what is free, both in bytes.

    Raises MemoryShortageError that says what the smallest one would need.
    """
    options = [expected(profile, needs) for profile in candidates or profiles()]
    for option in options:
        if option.device_bytes <= free_device and option.host_bytes <= free_host:
            return option
    least = min(options, key=lambda option: option.device_bytes)
    failure = "no memory profile fits" if len(options) > 1 else "the chosen memory profile does not fit"
    raise MemoryShortageError(
        f"{failure}: '{least.profile.name}' takes {least.device_bytes / 1e9:.1f} GB of the device and "
        f"{least.host_bytes / 1e9:.1f} GB of the machine, {free_device / 1e9:.1f} GB and {free_host / 1e9:.1f} GB are "
        "free; close other programs, or use a larger machine"
    )


def place(denoiser: Transformer, profile: Profile, device: torch.device) -> None:
    """Bring a transformer from the machine's memory to where the profile wants it; once, before its first use.

    Weights of 8 bits are made here. Afterwards the network is used as ever; layers that wait come by themselves.
    Raises InputError for an unknown format of weights.
    """
    try:
        weight_format = WeightFormat(profile.weights)
    except ValueError:
        names = ", ".join(known.value for known in WeightFormat)
        raise InputError(
            f"there are no weights in the format '{profile.weights}'; choose one of {names}"
        ) from None
    quantize_linears(denoiser.blocks, weight_format)
    if profile.group:
        blocks = WaitingBlocks(denoiser.blocks, device, group=profile.group, ahead=profile.ahead)
        # No module list: all that the network does with it is to go through it and to count it.
        denoiser.blocks = blocks  # type: ignore[assignment]
    denoiser.to(device)


def place_vae(vae: CausalVae, profile: Profile, device: torch.device) -> None:
    """Bring an autoencoder to the device, with the decoder that the profile wants."""
    if profile.is_lean:
        make_lean(vae)
    vae.to(device)


def falling_back(
    attempt: Callable[[Choice], Result], options: Sequence[Choice], say: Callable[[str], None]
) -> Result:
    """The result of the first option whose memory suffices; `say` hears of every one that did not.

    Each attempt begins anew. Raises MemoryShortageError when the last one fails, too.
    """
    for number, option in enumerate(options):
        try:
            return attempt(option)
        except (MemoryError, RuntimeError) as error:
            if not is_shortage(error):
                raise
            shortage = f"memory ran out with the profile '{option.profile.name}'"
        let_go()
        if number + 1 < len(options):
            say(f"{shortage}; going on with '{options[number + 1].profile.name}'")
    raise MemoryShortageError(f"{shortage}, the smallest; close other programs, or use a larger machine")


def let_go() -> None:
    """Give back what nobody uses any more. Layers that are compiled refer to themselves, and so stay until they are
    looked for; PyTorch keeps memory of a card that its tensors gave back, and pinned memory of the machine."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    empty_pinned: Callable[[], None] | None = getattr(torch._C, "_host_emptyCache", None)
    if empty_pinned is not None and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()  # what a copy still reads would stay
        empty_pinned()


def smaller(choice: Choice, needs: Needs, free_host: float) -> tuple[Choice, ...]:
    """A choice and all others that take no more of the device and fit into what is free of the machine, in the order in
    which they should be tried."""
    rest = [expected(profile, needs) for profile in profiles() if profile != choice.profile]
    fitting = [option for option in rest if option.host_bytes <= free_host]
    return (choice, *(option for option in fitting if option.device_bytes <= choice.device_bytes))


def is_shortage(error: BaseException) -> bool:
    """Whether an exception means that memory ran out, on a device or on the machine."""
    is_named = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return is_named or any(words in str(error).lower() for words in SHORTAGE_WORDS)
