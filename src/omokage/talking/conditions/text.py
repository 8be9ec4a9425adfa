"""Prompt -> text embeddings, by the encoder half of T5 v1.1 (Raffel et al. 2020) as `transformers` builds it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from omokage.errors import InputError, MissingDependencyError
from omokage.talking.conditions.pretrained import load_whole

# From a prompt to its token ids, padded or cut to the given number.
Tokenizer = Callable[[str, int], Sequence[int]]


class Unread:
    """In the place of an encoder, for networks that read no prompt: zeros, and so what their text tokens learned."""

    def __init__(self, tokens: int, width: int) -> None:
        self._shape = (1, tokens, width)

    def encode(self, prompt: str) -> Tensor:
        """Zeros (1, tokens, width), whatever the prompt."""
        return torch.zeros(self._shape)


class TextEncoder:
    """A prompt to the embeddings of exactly `tokens` tokens; longer prompts lose their end.

    Padding is attended to like words are: the transformer was trained that way.
    """

    def __init__(self, network: nn.Module, tokenizer: Tokenizer, tokens: int) -> None:
        self._network: Any = network.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self.tokens = tokens

    @classmethod
    def load(
        cls,
        folder: Path,
        tokens: int,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
    ) -> Self:
        """Read encoder and tokenizer from a folder in the format of `transformers`, from this machine alone.

        Raises InputError when the folder holds no such encoder, its kind WeightsError for one that is not whole,
        MissingDependencyError without `transformers`.
        """
        try:
            from transformers import AutoTokenizer, T5EncoderModel
            from transformers.utils import logging as transformers_logging
        except ImportError as error:
            raise MissingDependencyError(
                "the text encoder needs the packages transformers and sentencepiece, which are not installed; "
                "run: pip install 'omokage[portrait]'"
            ) from error
        try:
            transformers_logging.disable_progress_bar()
            # A folder may name code of its own, which transformers would otherwise ask to run.
            words = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            network = load_whole(T5EncoderModel, folder, "text encoder", trust_remote_code=False, dtype=dtype)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"{folder} holds no text encoder: a T5 folder with config.json, tokenizer and safetensors is needed; "
                "fetch it with 'omokage weights pull hallo3'"
            ) from error

        def tokenizer(prompt: str, count: int) -> Sequence[int]:
            ids: Sequence[int] = words(
                prompt, max_length=count, padding="max_length", truncation=True
            ).input_ids
            return ids

        return cls(network.to(device), tokenizer, tokens)

    def encode(self, prompt: str) -> Tensor:
        """Embeddings (1, tokens, D) of a prompt, in the encoder's precision."""
        ids = torch.tensor([list(self._tokenizer(prompt, self.tokens))])
        return self.embeddings(ids.to(self._network.device))

    def embeddings(self, ids: Tensor) -> Tensor:
        """Embeddings (B, N, D) of token ids (B, N)."""
        with torch.no_grad():
            states: Tensor = self._network(input_ids=ids).last_hidden_state
        return states
