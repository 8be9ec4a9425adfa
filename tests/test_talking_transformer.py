"""The video transformer against golden numbers at every stage, its caches, its independence, its official names."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from golden_fill import FOLDER, Golden, is_constant
from omokage.errors import InputError, InternalError
from omokage.talking.attention import rotary_angles
from omokage.talking.blocks import BlockSignals
from omokage.talking.caches import Conditions
from omokage.talking.checkpoint import DENOISER_PREFIX, REFERENCE_PREFIX, transformer_keys
from omokage.talking.config import TransformerConfig, official, tiny
from omokage.talking.projections import AudioProjection
from omokage.talking.scheduler import add_noise, velocity_loss
from omokage.talking.transformer import Transformer

# More than half of a tolerance deserves a look; the implementation needs a twelfth.
SHARE = 0.5


def load(golden: Golden, network: str) -> Transformer:
    """A transformer with the golden weights of `network`, read by their official names."""
    prefix = {"model": DENOISER_PREFIX, "ref_model": REFERENCE_PREFIX}[network]
    config = tiny() if network == "model" else tiny().reference
    keys = transformer_keys(config, prefix)
    state = {f"{network}.{key}": torch.from_numpy(value) for key, value in golden.weights(network).items()}
    transformer = Transformer(config)
    transformer.load_state_dict(
        {keys.names[key]: value for key, value in state.items() if key not in keys.dropped}
    )
    return transformer.eval().requires_grad_(False)


@cache
def golden() -> Golden:
    return Golden("hallo3_denoiser")


@cache
def denoiser() -> Transformer:
    return load(golden(), "model")


@cache
def reference() -> Transformer:
    return load(golden(), "ref_model")


@cache
def given(name: str) -> Tensor:
    return torch.from_numpy(golden().input(name))


def uncached() -> Conditions:
    """Every condition as tokens, which each layer projects anew."""
    network = denoiser()
    return Conditions(
        text=given("text"),
        latents=given("concat"),
        reference=(given("bank.0"), given("bank.1")),
        face=network.in_all_layers(network.face_tokens(given("face"))),
        audio=network.in_all_layers(network.audio_tokens(given("audio"))),
    )


def cached(reference_tokens: tuple[Tensor, ...], audio: Tensor) -> Conditions:
    """Every condition as keys and values that were made before."""
    network = denoiser()
    return Conditions(
        text=given("text"),
        latents=given("concat"),
        reference=network.cache_reference(reference_tokens).layers,
        face=network.cache_face(given("face")).layers,
        audio=network.cache_audio(audio).layers,
    )


def run(conditions: Conditions) -> Tensor:
    network = denoiser()
    return network(given("x"), network.modulation(given("timesteps")), conditions)


def portrait_tokens() -> tuple[Tensor, ...]:
    return reference().reference_tokens(given("reference_latent"))


def test_the_golden_arrays_are_drawn_as_they_were() -> None:
    for name in ("hallo3_denoiser", "hallo3_sampler", "hallo3_loss"):
        assert Golden(name).verify() > 150


def test_every_stage_with_given_reference_tokens() -> None:
    network, conditions = denoiser(), uncached()
    stages = {
        "time_embedding": network.modulation.embed(given("timesteps")),
        "audio_tokens": network.audio_tokens(given("audio")),
        "face_tokens": network.face_tokens(given("face"))[:, 0],
    }
    modulation, turns = network.modulation(given("timesteps")), network._rotaries(given("x"))
    tokens = network.embed(given("x"), conditions.latents, conditions.text)
    for i, block in enumerate(network.blocks):
        stages[f"hidden.{i}"] = tokens.joint
        signals = BlockSignals.of(modulation.blocks[i])
        tokens = block.attend(tokens, signals, turns, conditions.reference[i])
        stages[f"block.{i}.video_after_self"] = tokens.video
        stages[f"block.{i}.text_after_self"] = tokens.text
        tokens = block.attend_to_face(tokens, turns, conditions.face[i])
        stages[f"block.{i}.video_after_face"] = tokens.video
        tokens = block.attend_to_audio(tokens, turns, conditions.audio[i])
        stages[f"block.{i}.video_after_audio"] = tokens.video
        tokens = block.feed_forward(tokens, signals)
    stages[f"hidden.{len(network.blocks)}"] = tokens.joint
    stages["output"] = run(conditions)
    expected = {name for name in golden().outputs() if name.startswith("given_bank.")}
    assert {f"given_bank.{name}" for name in stages} == expected
    for name, value in stages.items():
        golden().check(f"given_bank.{name}", value.numpy(), share=SHARE)


def test_every_norm_at_small_magnitudes() -> None:
    """A wrong epsilon hides at ordinary magnitudes."""
    network, first = denoiser(), denoiser().blocks[0]
    norms = {
        "input": (first.attention_norm, "probe"),
        "post_attention": (first.mlp_norm, "probe"),
        "face_input": (first.face_norm, "probe"),
        "audio_input": (first.audio_norm, "probe"),
        "final": (network.head.stack_norm, "probe"),
        "output": (network.head.norm, "probe"),
        "query": (first.head_norms.query, "probe_head"),
        "key": (first.head_norms.key, "probe_head"),
        "audio_proj": (network.audio_tokens.norm, "probe_audio"),
        "face_proj": (network.face_tokens.norm, "probe_face"),
        "reference_input": (reference().blocks[0].attention_norm, "probe"),
        "reference_key": (reference().blocks[0].head_norms.key, "probe_head"),
    }
    assert {f"norm.{name}" for name in norms} == {n for n in golden().outputs() if n.startswith("norm.")}
    for name, (norm, probe) in norms.items():
        golden().check(f"norm.{name}", norm(given(probe)).numpy(), share=SHARE)


def test_nothing_is_computed_after_the_last_export() -> None:
    calls: list[int] = []
    hooks = [
        block.register_forward_hook(lambda *_, i=i: calls.append(i))
        for i, block in enumerate(reference().blocks)
    ]
    portrait_tokens()
    for hook in hooks:
        hook.remove()
    assert calls == [0]


def test_reference_network() -> None:
    network, latent = reference(), given("reference_latent")
    for i, tokens in enumerate(portrait_tokens()):
        golden().check(f"reference.bank.{i}", tokens.numpy(), share=SHARE)
    text = torch.zeros(1, tiny().text_tokens, tiny().text_width)
    output = network(latent, network.modulation(torch.zeros(1)), Conditions(text, latent))
    golden().check("reference.output", output.numpy(), share=SHARE)
    clip = network(
        given("x"), network.modulation(given("timesteps")), Conditions(given("text"), given("concat"))
    )
    golden().check("base_video.output", clip.numpy(), share=SHARE)


def test_both_networks_chained_with_caches() -> None:
    conditions = cached(portrait_tokens(), given("audio"))
    golden().check("with_reference.output", run(conditions).numpy(), share=SHARE)
    without = replace(conditions, reference=None)
    golden().check("no_reference.output", run(without).numpy(), share=SHARE)


def test_the_other_half_of_guidance() -> None:
    silence = torch.zeros_like(given("audio"))
    golden().check("unconditional.audio_tokens", denoiser().audio_tokens(silence).numpy(), share=SHARE)
    conditions = replace(cached(portrait_tokens(), silence), text=torch.zeros_like(given("text")))
    golden().check("unconditional.output", run(conditions).numpy(), share=SHARE)


def test_cached_and_uncached_conditions_agree() -> None:
    plain = run(uncached())
    fast = run(cached((given("bank.0"), given("bank.1")), given("audio")))
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-5)
    golden().check("given_bank.output", fast.numpy(), share=SHARE)


def test_a_row_of_the_modulation_table_is_the_modulation_of_its_timestep() -> None:
    network, conditions = denoiser(), cached(portrait_tokens(), given("audio"))
    table = network.modulation(torch.tensor([999.0, 700.0, 19.0]))
    alone = network(given("x"), network.modulation(torch.tensor([700.0, 700.0])), conditions)
    torch.testing.assert_close(network(given("x"), table.row(1), conditions), alone, rtol=0, atol=1e-5)


def test_a_batch_of_two_shares_what_is_the_same() -> None:
    """Joined conditions give what each gives alone; one portrait is not repeated."""
    network, tokens = denoiser(), portrait_tokens()
    x, modulation = given("x")[:1], network.modulation(torch.tensor([700.0]))
    text, latents = given("text")[:1], given("concat")[:1]
    portrait = network.cache_reference(tokens).layers
    face = network.cache_face(given("face")[:1]).layers
    speech, silence = (network.cache_audio(a).layers for a in (given("audio")[:1], given("audio")[1:]))
    first = Conditions(text, latents, portrait, face, speech)
    second = Conditions(torch.zeros_like(text), latents, portrait, face, silence)
    joined = first.join(second)
    assert joined.reference is portrait and joined.face is face and joined.latents is latents
    assert joined.audio[0].keys.shape[0] == 2
    both = network(torch.cat([x, x]), modulation, joined)
    apart = torch.cat([network(x, modulation, first), network(x, modulation, second)])
    torch.testing.assert_close(both, apart, rtol=0, atol=1e-5)
    twice = replace(uncached(), audio=None).join(replace(uncached(), audio=None))
    assert twice.audio is None and twice.text.shape[0] == 4 and twice.face[0].shape[0] == 4
    with pytest.raises(InternalError, match="when both have"):
        first.join(replace(second, face=None))


def test_requests_share_no_state() -> None:
    """A request between two equal ones changes nothing, and no module gains an attribute or a buffer."""
    network = denoiser()
    before = [set(vars(module)) for module in network.modules()], copy.deepcopy(network.state_dict())
    conditions = uncached()
    first = run(conditions)
    other = replace(
        conditions, reference=tuple(2 * tokens for tokens in conditions.reference), text=-conditions.text
    )
    assert (run(other) - first).abs().max() > 0.01
    assert torch.equal(run(conditions), first)
    assert [set(vars(module)) for module in network.modules()] == before[0]
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before[1].items())


def test_each_latent_frame_hears_its_own_video_frames() -> None:
    """Latent frame 0 hears frame 0, latent frame j hears frames 4j-3 to 4j."""
    projection, silence = denoiser().audio_tokens, torch.zeros(1, 49, 5, 12, 16)
    quiet = projection(silence)
    for frame in (0, 1, 4, 5, 44, 45, 48):
        speech = silence.clone()
        speech[:, frame] = 1
        heard = (projection(speech) - quiet).abs().amax(dim=(0, 2, 3)) > 1e-6
        assert heard.nonzero().flatten().tolist() == [-(-frame // 4)]


def test_text_does_not_hear_within_a_layer() -> None:
    network, conditions = denoiser(), uncached()
    modulation, turns = network.modulation(given("timesteps")), network._rotaries(given("x"))
    tokens = network.embed(given("x"), conditions.latents, conditions.text)
    outputs = [
        network.blocks[0](tokens, modulation.blocks[0], turns, conditions.reference[0], face, audio)
        for face, audio in ((conditions.face[0], conditions.audio[0]), (None, None))
    ]
    assert torch.equal(outputs[0].text, outputs[1].text)
    assert (outputs[0].video - outputs[1].video).abs().max() > 0.1


def test_rotary_angles_turn_each_axis_at_its_own_rates() -> None:
    angles = rotary_angles(3, 4, 5, 64, torch.device("cpu")).reshape(3, 4, 5, 32)
    assert torch.equal(angles[:, 0, 0, 0], torch.arange(3.0))
    assert torch.equal(angles[0, :, 0, 8], torch.arange(4.0))
    assert torch.equal(angles[0, 0, :, 20], torch.arange(5.0))
    assert angles[0, 0, 0].abs().max() == 0 and angles[2, 0, 0, 8:].abs().max() == 0
    torch.testing.assert_close(angles[1, 0, 0, 7], torch.tensor(1e4 ** (-14 / 16)))
    torch.testing.assert_close(angles[0, 1, 0, 19], torch.tensor(1e4 ** (-22 / 24)))


def test_new_branches_begin_small() -> None:
    torch.manual_seed(0)
    block = Transformer(tiny()).blocks[0]
    assert block.face.query.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert block.audio.output.weight.std().item() == pytest.approx(0.02 / 2, rel=0.1)  # sqrt(2 * 2 layers)
    assert block.audio.key_value.bias.abs().max() == 0


def test_half_precision_weights_take_float_inputs() -> None:
    network = copy.deepcopy(denoiser()).to(torch.bfloat16)
    tokens = copy.deepcopy(reference()).to(torch.bfloat16).reference_tokens(given("reference_latent"))
    conditions = Conditions(
        given("text"),
        given("concat"),
        network.cache_reference(tokens).layers,
        network.cache_face(given("face")).layers,
        network.cache_audio(given("audio")).layers,
    )
    output = network(given("x"), network.modulation(given("timesteps")), conditions)
    assert output.dtype == torch.bfloat16
    exact = run(cached(portrait_tokens(), given("audio")))
    assert (output.float() - exact).std() < 0.03 * exact.std()


def test_caches_know_their_size_and_can_be_moved() -> None:
    cache_of_face = denoiser().cache_face(given("face"))
    # 2 layers, keys and values, 2 samples, 4 tokens of 32 channels, 4 bytes each
    assert cache_of_face.size == 2 * 2 * 2 * 4 * 32 * 4
    moved = cache_of_face.to("cpu", torch.bfloat16)
    assert moved.size == cache_of_face.size // 2
    assert moved.layers[0].keys.dtype == torch.bfloat16
    for layer in denoiser().cache_reference(portrait_tokens()).layers:
        # Nothing else, such as the queries, is kept alive.
        assert layer.keys.untyped_storage().nbytes() == layer.keys.nbytes
        assert layer.values.untyped_storage().nbytes() == layer.values.nbytes


def test_loss_and_gradients_of_both_networks() -> None:
    gold = Golden("hallo3_loss")
    inputs = {name: torch.from_numpy(gold.input(name)) for name in gold.meta["inputs"]}
    timesteps = torch.tensor(gold.config["timesteps"])
    network, identity = (load(gold, name).requires_grad_() for name in ("model", "ref_model"))
    conditions = Conditions(
        text=inputs["text"],
        latents=inputs["concat"],
        reference=identity.reference_tokens(inputs["reference_latent"], inputs["text"]),
        face=network.in_all_layers(network.face_tokens(inputs["face"])),
        audio=network.in_all_layers(network.audio_tokens(inputs["audio"])),
    )
    noisy = add_noise(inputs["clean"], inputs["noise"], timesteps)
    velocity = network(noisy, network.modulation(timesteps), conditions)
    loss = velocity_loss(velocity, inputs["clean"], inputs["noise"], timesteps)
    gold.check("loss", loss.detach().numpy(), share=SHARE)

    loss.mean().backward()
    gradients = {}
    for part, prefix in ((network, DENOISER_PREFIX), (identity, REFERENCE_PREFIX)):
        ours = dict(part.named_parameters())
        names = transformer_keys(part.config, prefix).names
        gradients |= {key: ours[name].grad for key, name in names.items()}
    # What no output depends on has no gradient: -30 stands for none.
    norms = [
        float(gradients[key].double().norm().log10()) if gradients.get(key) is not None else -30.0
        for key in gold.config["parameters"]
    ]
    gold.check("parameter_gradient_log10_norm", torch.tensor(norms).numpy(), share=SHARE)
    for name in gold.outputs():
        if name.startswith("gradient."):
            gold.check(name, gradients[name.removeprefix("gradient.")].numpy(), share=SHARE)


def official_keys(prefix: str) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of the official transformer under `prefix`, constant tables included."""
    found = {}
    for line in (FOLDER / "hallo3_transformer_keys.txt").read_text(encoding="utf-8").splitlines()[1:]:
        key, shape = line.split("\t")[:2]
        layers = range(42) if "{0..41}" in key else range(1)
        if key.startswith(prefix):
            found |= {
                key.replace("{0..41}", str(layer)): tuple(map(int, shape.split("x"))) for layer in layers
            }
    return found


@pytest.mark.parametrize(
    ("config", "prefix", "parameters"),
    [
        (official(), DENOISER_PREFIX, 8_921_253_952),
        (official().reference, REFERENCE_PREFIX, 5_625_284_160),
    ],
)
def test_every_official_key_has_its_place(config: TransformerConfig, prefix: str, parameters: int) -> None:
    with torch.device("meta"):
        ours = {name: tuple(value.shape) for name, value in Transformer(config).state_dict().items()}
    theirs, keys = official_keys(prefix), transformer_keys(config, prefix)
    assert set(theirs) == set(keys.names) | keys.dropped and not set(keys.names) & keys.dropped
    assert sorted(keys.names.values()) == sorted(ours)
    assert {keys.names[key]: shape for key, shape in theirs.items() if key in keys.names} == ours
    counted = {key: torch.Size(shape).numel() for key, shape in theirs.items() if not is_constant(key)}
    assert sum(counted.values()) == parameters
    assert sum(torch.Size(shape).numel() for shape in ours.values()) == parameters - 64 * 3072


def test_configurations() -> None:
    assert official().frames == 49 and official().tokens_per_frame == 1350
    assert official().reference.audio is None and official().reference.layers == 42
    for config in (official(), tiny().reference):
        assert TransformerConfig.from_json(config.to_json()) == config
    with pytest.raises(InputError, match="multiple of 16"):
        replace(tiny(), heads=4)
    with pytest.raises(InputError, match="cannot be cut into patches of 2"):
        replace(tiny(), latent_height=9)


def test_what_does_not_fit_is_refused() -> None:
    network, conditions = denoiser(), uncached()
    modulation = network.modulation(given("timesteps"))
    with pytest.raises(InputError, match="learned positions fit no other size"):
        network(given("x")[..., :10], modulation, conditions)
    with pytest.raises(InputError, match="learned positions fit no other size"):
        reference().reference_tokens(given("reference_latent")[..., :6, :])
    for short in (network.in_all_layers(network.audio_tokens(given("audio")[:, :5])), None):
        short = short or network.cache_audio(given("audio")[:, :5]).layers
        with pytest.raises(InternalError, match="speech for 2 latent frames was given to 13"):
            network(given("x"), modulation, replace(conditions, audio=short))
    with pytest.raises(InputError, match="multiple of 4 frames plus one, got 48"):
        network.cache_audio(given("audio")[:, :48])
    with pytest.raises(InternalError, match="text embeddings must be 6 x 28"):
        network(given("x"), modulation, replace(conditions, text=conditions.text[:, :5]))
    with pytest.raises(InternalError, match=r"\(True, False\), the network needs \(True, True\)"):
        network(given("x"), modulation, replace(conditions, audio=None))
    with pytest.raises(InternalError, match="no face branch"):
        reference().cache_face(given("face"))
    with pytest.raises(InternalError, match="no audio branch"):
        reference().cache_audio(given("audio"))


def test_a_window_of_another_length() -> None:
    """The speech branch takes any whole number of latent frames."""
    projection = AudioProjection(tiny().audio)
    assert projection(torch.zeros(2, 17, 5, 12, 16)).shape == (2, 5, 4, 24)
