"""A model that knows nothing, in a folder as the product installs models: to try out the way from videos to a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from omokage.files import result_folder
from omokage.talking.config import AudioTokensConfig, TransformerConfig, small
from omokage.talking.folder import (
    ARCHITECTURE_FILE,
    DENOISER,
    REFERENCE,
    VAE,
    Architecture,
    save_architecture,
)
from omokage.talking.training.export import write_network
from omokage.talking.transformer import Transformer
from omokage.talking.vae import CausalVae, small_vae

UNTRAINED = "made by networks whose autoencoder was never trained: it shows nothing"


def tiny_architecture() -> Architecture:
    """Windows of 17 frames of 64 x 64 pixels, 0.1 million weights; needs no trained encoders."""
    transformer: TransformerConfig = replace(
        small(),
        layers=2,
        width=32,
        heads=2,
        timestep_width=32,
        latent_channels=8,
        latent_height=4,
        latent_width=4,
        patch=2,
        audio=AudioTokensConfig(window=5, layers=3, channels=80, hidden=16, tokens=4, width=16),
    )
    vae = replace(small_vae(), widths=(8, 16, 16), latent_channels=8, grid=(4, 4))
    return Architecture(transformer, vae, is_small=True, caution=UNTRAINED)


def make_untrained(folder: Path, seed: int) -> Path:
    """Write a tiny model with random weights, unless it is there. Raises OutputError."""
    if (folder / ARCHITECTURE_FILE).is_file():
        return folder
    sizes = tiny_architecture()
    with torch.random.fork_rng(devices=[]), result_folder(folder):
        torch.manual_seed(seed)
        write_network(folder, DENOISER, Transformer(sizes.transformer))
        write_network(folder, REFERENCE, Transformer(sizes.transformer.reference))
        write_network(folder, VAE, CausalVae(sizes.vae))
        save_architecture(folder, sizes)  # last: without it the folder is no model
    return folder
