"""What tests animate with: a tiny model filled at random, in a folder as the product installs it; pictures; sounds."""

from __future__ import annotations

import wave
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import nn

from omokage.media.clip import Audio
from omokage.official import KeyMap
from omokage.talking.checkpoint import DENOISER_PREFIX, REFERENCE_PREFIX, transformer_keys
from omokage.talking.config import tiny
from omokage.talking.convert import Part, convert_checkpoint
from omokage.talking.folder import (
    DENOISER,
    REFERENCE,
    SPEECH_FOLDER,
    TEXT_FOLDER,
    VAE,
    Architecture,
    save_architecture,
)
from omokage.talking.model import Machine, skeletons
from omokage.talking.vae import VaeConfig, vae_keys

CPU = Machine(torch.device("cpu"), torch.float32)
WORDS = ("<pad>", "<unk>", "a", "person", "talks", "to", "the", "camera", "sea", "by")


def tiny_architecture() -> Architecture:
    """Windows of 49 frames of 64 x 96 pixels."""
    vae = VaeConfig(widths=(8, 8, 16), blocks=1, latent_channels=16, norm_groups=4, stem=2, scale=0.7)
    audio = tiny().audio
    assert audio is not None
    return Architecture(replace(tiny(), audio=replace(audio, layers=2)), vae)


def make_tiny_folder(folder: Path, seed: int = 0) -> Path:
    """Needs diffusers and transformers."""
    sizes = tiny_architecture()
    torch.manual_seed(seed)
    maps = {
        DENOISER: transformer_keys(sizes.transformer, DENOISER_PREFIX),
        REFERENCE: transformer_keys(sizes.transformer.reference, REFERENCE_PREFIX),
        VAE: vae_keys(sizes.vae),
    }
    state = {}
    for name, network in skeletons(sizes).items():
        state |= _filled(network, maps[name])
    folder.mkdir(parents=True, exist_ok=True)
    official = folder / "official.pt"
    torch.save({"module": state}, official)
    convert_checkpoint(official, [Part(name, keys) for name, keys in maps.items()], folder)
    official.unlink()
    save_architecture(folder, sizes)
    save_encoders(folder, sizes)
    return folder


def tiny_cogvideox() -> Architecture:
    """Windows of 49 frames of 64 x 96 pixels, with the released autoencoder's way of halving."""
    vae = VaeConfig(widths=(8, 8, 16, 16), blocks=1, latent_channels=16, norm_groups=4, stem=1, scale=0.7)
    return replace(tiny_architecture(), vae=vae)


def make_cogvideox_folder(folder: Path, **changes: Any) -> Path:
    """CogVideoX in the layout of diffusers, tiny, filled at random; `changes` are those of its transformer's sizes."""
    import diffusers

    sizes = tiny_cogvideox()
    network = sizes.transformer
    torch.manual_seed(0)
    settings = {
        "num_attention_heads": network.heads,
        "attention_head_dim": network.head_width,
        "in_channels": 2 * network.latent_channels,
        "out_channels": network.latent_channels,
        "time_embed_dim": network.timestep_width,
        "text_embed_dim": network.text_width,
        "num_layers": network.layers,
        "sample_width": network.latent_width,
        "sample_height": network.latent_height,
        "sample_frames": network.frames,
        "max_text_seq_length": network.text_tokens,
        "use_rotary_positional_embeddings": True,
        "use_learned_positional_embeddings": True,
    }
    transformer = diffusers.CogVideoXTransformer3DModel(**(settings | changes))
    for value in transformer.parameters():  # norms that do nothing would hide a wrong place
        if value.dim() == 1:
            value.data += 0.1 * torch.randn_like(value)
    positions = transformer.patch_embed.pos_embedding
    transformer.patch_embed.pos_embedding = 0.2 * torch.randn(positions.shape)
    transformer.save_pretrained(folder / "transformer", max_shard_size="60KB")
    levels = len(sizes.vae.widths)
    diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * levels,
        up_block_types=("CogVideoXUpBlock3D",) * levels,
        block_out_channels=sizes.vae.widths,
        latent_channels=sizes.vae.latent_channels,
        layers_per_block=sizes.vae.blocks,
        norm_num_groups=sizes.vae.norm_groups,
    ).save_pretrained(folder / "vae")
    save_encoders(folder, sizes)
    (folder / TEXT_FOLDER).rename(folder / "text_encoder")
    (folder / "tokenizer").mkdir()
    for path in (folder / "text_encoder").glob("*token*"):
        path.rename(folder / "tokenizer" / path.name)
    return folder


def _filled(network: nn.Module, keys: KeyMap) -> dict[str, torch.Tensor]:
    """Official key -> values of about the size that trained ones have."""
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    state = {}
    for official, ours in keys.names.items():
        shape = shapes[ours]
        if len(shape) > 1:
            state[official] = torch.randn(shape) / shape[1:].numel() ** 0.5
        else:
            state[official] = (0.0 if ours.endswith("bias") else 1.0) + 0.1 * torch.randn(shape)
    return state


def save_encoders(folder: Path, sizes: Architecture) -> None:
    """A text and a speech encoder, filled at random, in their folders below `folder`."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>").save_pretrained(
        folder / TEXT_FOLDER
    )
    text = transformers.T5Config(
        vocab_size=len(WORDS),
        d_model=sizes.transformer.text_width,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
    )
    transformers.T5EncoderModel(text).save_pretrained(folder / TEXT_FOLDER)
    audio = sizes.transformer.audio
    assert audio is not None
    speech = transformers.Wav2Vec2Config(
        hidden_size=audio.channels,
        num_hidden_layers=audio.layers,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
    )
    transformers.Wav2Vec2Model(speech).save_pretrained(folder / SPEECH_FOLDER)


def save_face_network(path: Path, width: int) -> np.ndarray:
    """A face embedding: a network that sums up pixels with fixed weights; returns those (3 * 112 * 112, width)."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(0).standard_normal((3 * 112 * 112, width)).astype(np.float32) / 100
    nodes = [
        helper.make_node("Flatten", ["crop"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "weights"], ["embedding"]),
    ]
    graph = helper.make_graph(
        nodes,
        "face",
        [helper.make_tensor_value_info("crop", TensorProto.FLOAT, [1, 3, 112, 112])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [1, width])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(path))
    return weights


def astronaut() -> np.ndarray:
    from skimage.data import astronaut as nasa_portrait

    return np.asarray(nasa_portrait())


def save_picture(path: Path, picture: np.ndarray, **options: Any) -> Path:
    PIL.Image.fromarray(picture).save(path, **options)
    return path


def save_sound(path: Path, sound: Audio) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(sound.samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(sound.sample_rate)
        file.writeframes((sound.samples * 32767).astype("<i2").tobytes())
    return path
