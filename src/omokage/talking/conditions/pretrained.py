"""Encoders that somebody else trained, in the format of `transformers`: read whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from omokage.errors import WeightsError

# Stands in the place of what training hides; the released speech recogniser came without it, and nobody reads it here.
UNREAD = frozenset({"masked_spec_embed"})


def load_whole(kind: Any, folder: Path, what: str, **choices: Any) -> nn.Module:
    """A network of this class of `transformers` with the weights of `folder`, from this machine alone.

    By itself `from_pretrained` fills what a file lacks, or holds in another size, at random and goes on. `what` it is
    for people; `choices` are those of `from_pretrained`. Raises WeightsError for weights that are damaged, incomplete
    or of another network; what `transformers` raises for a folder without such a network.
    """
    from safetensors import SafetensorError
    from transformers.utils import logging

    remedy = "fetch it with 'omokage weights pull hallo3', or add the whole official folder again"
    said_from = logging.get_verbosity()
    logging.set_verbosity_error()  # what its report warns of is refused below, and the rest is as it should be
    try:
        network, found = kind.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told below, in one sentence
            **choices,
        )
    except SafetensorError as error:
        raise WeightsError(f"the {what} in {folder} is damaged or incomplete; {remedy}") from error
    finally:
        logging.set_verbosity(said_from)
    lacking = set(found["missing_keys"]) | {name for name, *_ in found["mismatched_keys"]}
    strange = sorted(name for name in lacking if name.rpartition(".")[2] not in UNREAD)
    if strange:
        raise WeightsError(
            f"the {what} in {folder} is incomplete or of another network than its config.json says: {len(strange)} of "
            f"its tensors are missing or of another size, such as '{strange[0]}'; {remedy}"
        )
    loaded: nn.Module = network
    return loaded
