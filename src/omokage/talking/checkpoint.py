"""Where each tensor of an official checkpoint goes: names of the two transformers.

The official file holds both under prefixes, as buffers and weights of a training framework (spec 2.5). Every tensor is
either renamed or, when it holds nothing that the network uses, dropped; none is split, joined or transposed.
"""

from __future__ import annotations

from omokage.official import KeyMap
from omokage.talking.config import TransformerConfig
from omokage.talking.vae import VAE_PREFIX

DENOISER_PREFIX = "model.diffusion_model."
REFERENCE_PREFIX = "ref_model.diffusion_model."
# What else the official files may hold beside the networks that are wanted from them.
OTHERS_IN_MAIN = (VAE_PREFIX, "conditioner.")
OTHERS_IN_VAE = ("loss.",)

# Official name -> ours, without ".weight" and ".bias"; {} is the layer.
_PARTS = {
    "mixins.patch_embed.proj": "embedding.patches",
    "mixins.patch_embed.text_proj": "embedding.text",
    "time_embed.0": "modulation.first",
    "time_embed.2": "modulation.second",
    "mixins.final_layer.adaLN_modulation.1": "modulation.head",
    "mixins.final_layer.norm_final": "head.norm",
    "mixins.final_layer.linear": "head.linear",
    "transformer.final_layernorm": "head.stack_norm",
}
_LAYER_PARTS = {
    "mixins.adaln_layer.adaLN_modulations.{}.1": "modulation.blocks.{}",
    "mixins.adaln_layer.query_layernorm_list.{}": "blocks.{}.head_norms.query",
    "mixins.adaln_layer.key_layernorm_list.{}": "blocks.{}.head_norms.key",
    "transformer.layers.{}.input_layernorm": "blocks.{}.attention_norm",
    "transformer.layers.{}.attention.query_key_value": "blocks.{}.attention.query_key_value",
    "transformer.layers.{}.attention.dense": "blocks.{}.attention.output",
    "transformer.layers.{}.post_attention_layernorm": "blocks.{}.mlp_norm",
    "transformer.layers.{}.mlp.dense_h_to_4h": "blocks.{}.mlp.0",
    "transformer.layers.{}.mlp.dense_4h_to_h": "blocks.{}.mlp.2",
}
# {0} is the branch, {1} the layer.
_BRANCH_PARTS = {
    "transformer.layers.{1}.{0}_input_layernorm": "blocks.{1}.{0}_norm",
    "transformer.layers.{1}.{0}_attn.query": "blocks.{1}.{0}.query",
    "transformer.layers.{1}.{0}_attn.key_value": "blocks.{1}.{0}.key_value",
    "transformer.layers.{1}.{0}_attn.dense": "blocks.{1}.{0}.output",
}
_FACE_PARTS = {
    "transformer.face_proj.proj": "face_tokens.linear",
    "transformer.face_proj.norm": "face_tokens.norm",
}
_AUDIO_PARTS = {
    "transformer.audio_proj.proj1": "audio_tokens.first",
    "transformer.audio_proj.proj2": "audio_tokens.second",
    "transformer.audio_proj.proj3": "audio_tokens.third",
    "transformer.audio_proj.conv1": "audio_tokens.halving",
    "transformer.audio_proj.norm": "audio_tokens.norm",
}
_POSITIONS = {"mixins.pos_embed.pos_embedding": "embedding.positions"}
# Rotary tables, which we compute, and a table of the framework's that no output depends on.
_DROPPED = (
    "mixins.pos_embed.freqs_sin",
    "mixins.pos_embed.freqs_cos",
    "transformer.position_embeddings.weight",
)


def transformer_keys(config: TransformerConfig, prefix: str) -> KeyMap:
    """Every key that an official transformer of this architecture has under `prefix` (spec 2.5)."""
    parts = dict(_PARTS)
    if config.face is not None:
        parts |= _FACE_PARTS
    if config.audio is not None:
        parts |= _AUDIO_PARTS
    branches = [name for name in ("face", "audio") if getattr(config, name) is not None]
    for layer in range(config.layers):
        parts |= {theirs.format(layer): ours.format(layer) for theirs, ours in _LAYER_PARTS.items()}
        for branch in branches:
            parts |= {
                theirs.format(branch, layer): ours.format(branch, layer)
                for theirs, ours in _BRANCH_PARTS.items()
            }
    names = {
        f"{prefix}{theirs}.{kind}": f"{ours}.{kind}"
        for theirs, ours in parts.items()
        for kind in ("weight", "bias")
    }
    names |= {f"{prefix}{theirs}": ours for theirs, ours in _POSITIONS.items()}
    return KeyMap(names, frozenset(f"{prefix}{key}" for key in _DROPPED))
