"""CogVideoX becomes what training begins with: the same numbers from both layouts, and branches to be trained."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from omokage.errors import InputError, WeightsError
from omokage.talking.caches import Conditions
from omokage.talking.checkpoint import DENOISER_PREFIX, transformer_keys
from omokage.talking.cogvideox import diffusers_pieces, read_transformer
from omokage.talking.config import official
from omokage.talking.convert import load_weights, read_index
from omokage.talking.folder import SPEECHLESS, load_architecture, official_architecture
from omokage.talking.model import TalkingModel, skeletons
from omokage.talking.placement import resident
from omokage.talking.vae import official_vae_key
from omokage.weights.store import Condition, inspect, installed
from talking_folder import CPU, make_cogvideox_folder, tiny_cogvideox

diffusers = pytest.importorskip("diffusers", reason="CogVideoX needs 'pip install omokage[portrait]'")

from omokage.pipelines.model_files import AddConfig  # noqa: E402
from omokage.pipelines.weights import add_weights  # noqa: E402

SIZES = tiny_cogvideox()


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cogvideox_folder(tmp_path_factory.mktemp("cogvideox") / "CogVideoX-5b-I2V")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OMOKAGE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "weights"


def add(source: Path, **changes: object) -> Path:
    config = AddConfig(SIZES, torch.float32, shard_bytes=100_000)
    return add_weights("cogvideox", source, config=replace(config, **changes))  # type: ignore[arg-type]


@pytest.fixture
def model(published: Path) -> TalkingModel:
    return TalkingModel.open(add(published), CPU)


def own_layout(source: Path, folder: Path) -> Path:
    """The same model as its own training saved it: one file a network, fused projections, tables beside the weights."""
    weights = read_transformer(source / "transformer", SIZES.transformer.reference)
    keys = transformer_keys(SIZES.transformer.reference, DENOISER_PREFIX)
    state = {theirs: weights[ours].to(torch.float32) for theirs, ours in keys.names.items()}
    state |= {key: torch.ones(2) for key in keys.dropped} | {"conditioner.embedders.0.x": torch.ones(1)}
    vae = load_file(source / "vae" / "diffusion_pytorch_model.safetensors")
    files = {
        "transformer/1/mp_rank_00_model_states.pt": {"module": state},
        "vae/3d-vae.pt": {
            "state_dict": {official_vae_key(key, SIZES.vae): value for key, value in vae.items()}
        },
    }
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True)
        torch.save(content, folder / path)
    for name in ("text_encoder", "tokenizer", "speech"):
        shutil.copytree(source / name, folder / name)
    return folder


def test_the_installed_transformer_gives_the_numbers_of_diffusers(
    published: Path, model: TalkingModel
) -> None:
    """The learned positions, the fused projections and the order of the modulation, against an independent network."""
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    theirs = diffusers.CogVideoXTransformer3DModel.from_pretrained(published / "transformer").eval()
    sizes = SIZES.transformer
    grid = (sizes.latent_height // sizes.patch, sizes.latent_width // sizes.patch)
    noisy, condition = torch.randn(2, 1, 13, 16, sizes.latent_height, sizes.latent_width).unbind(0)
    text, timestep = torch.randn(1, sizes.text_tokens, sizes.text_width), torch.tensor([700])
    turns = get_3d_rotary_pos_embed(sizes.head_width, ((0, 0), grid), grid, sizes.latent_frames)
    with torch.no_grad():
        expected = theirs(
            torch.cat([noisy, condition], dim=2), text, timestep, image_rotary_emb=turns, return_dict=False
        )[0]
        ours = model.reference(resident())
        found = ours(noisy, ours.modulation(timestep), Conditions(text, condition, None, None, None))
    # The last norm's epsilon is 1e-5 there and 1e-6 here, as released (spec 6.2.11).
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * float(expected.std()))


def test_both_layouts_become_the_same_files(published: Path, tmp_path: Path) -> None:
    ours = add(published)
    expected = {name: read_index(ours, name) for name in ("denoiser", "reference", "vae")}
    assert len(expected["denoiser"].digests) > 2
    shutil.rmtree(tmp_path / "home")
    again = add(own_layout(published, tmp_path / "cogvideox-5b-i2v-sat"))
    assert {name: read_index(again, name) for name in expected} == expected
    assert inspect("cogvideox", full=True).condition is Condition.VERIFIED
    assert installed("cogvideox") == again and load_architecture(again) == replace(SIZES, caution=SPEECHLESS)
    assert (again / "text" / "tokenizer.json").is_file() and (again / "speech" / "config.json").is_file()
    assert "CogVideoX License" in (again / "NOTICE.txt").read_text()


def test_the_autoencoder_is_that_of_diffusers(published: Path, model: TalkingModel) -> None:
    theirs = diffusers.AutoencoderKLCogVideoX.from_pretrained(published / "vae")
    video = torch.rand(1, 3, 3, 64, 96) * 2 - 1
    with torch.no_grad():
        expected = theirs.encode(video.transpose(1, 2)).latent_dist.mean.transpose(1, 2)
        found = model.vae(resident()).posterior(video).mean
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_denoiser_begins_as_the_model_with_new_branches(model: TalkingModel) -> None:
    denoiser, reference = model.denoiser(resident()).state_dict(), model.reference(resident()).state_dict()
    assert all(torch.equal(denoiser[key], value) for key, value in reference.items())
    new = {key: value for key, value in denoiser.items() if key not in reference}
    assert new and all("face" in key or "audio" in key for key in new)
    query = torch.cat(
        [new[f"blocks.{i}.{kind}.query.weight"].flatten() for i in (0, 1) for kind in ("face", "audio")]
    )
    output = torch.cat(
        [new[f"blocks.{i}.{kind}.output.weight"].flatten() for i in (0, 1) for kind in ("face", "audio")]
    )
    assert abs(float(query.std()) / 0.02 - 1) < 0.05
    assert abs(float(output.std()) / (0.02 / 4**0.5) - 1) < 0.05  # two layers
    assert all(bool((new[f"blocks.0.{kind}.query.bias"] == 0).all()) for kind in ("face", "audio"))
    assert not torch.equal(new["blocks.0.face.query.weight"], new["blocks.1.face.query.weight"])
    assert all(bool((new[key] == 1).all()) for key in new if key.endswith("norm.weight"))


def test_every_published_tensor_has_its_place_at_full_size() -> None:
    """On the meta device: no weight exists."""
    with torch.device("meta"):
        theirs = diffusers.CogVideoXTransformer3DModel(
            num_attention_heads=48,
            in_channels=32,
            num_layers=42,
            use_rotary_positional_embeddings=True,
            use_learned_positional_embeddings=True,
        ).state_dict()
        vae = diffusers.AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(128, 256, 256, 512),
        ).state_dict()
    networks = skeletons(official_architecture())
    pieces = diffusers_pieces(official().reference)
    rows: dict[str, int] = {}
    for ours, parts in pieces.items():
        shapes = [(theirs[key].shape, half) for key, half in parts]
        size = sum(shape[0] // (1 if half is None else 2) for shape, half in shapes)
        assert networks["reference"].state_dict()[ours].shape == (size, *shapes[0][0][1:])
        for key, half in parts:
            rows[key] = rows.get(key, 0) + theirs[key].shape[0] // (1 if half is None else 2)
    assert set(pieces) == set(networks["reference"].state_dict())
    assert rows == {key: value.shape[0] for key, value in theirs.items()}  # all of each, once
    assert {key: value.shape for key, value in vae.items()} == {
        key: value.shape for key, value in networks["vae"].state_dict().items()
    }


def test_a_stopped_installation_goes_on(published: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import omokage.talking.convert as convert

    write, written = convert.save_file, list[str]()

    def stop(values: dict[str, torch.Tensor], path: Path) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path.name)
        write(values, path)

    with monkeypatch.context() as patch:
        patch.setattr(convert, "save_file", stop)
        with pytest.raises(KeyboardInterrupt):
            add(published)
    assert inspect("cogvideox").condition is Condition.UNFINISHED
    before = {path: path.stat().st_mtime_ns for path in (home / "cogvideox").glob("*.safetensors")}
    folder = add(published)
    assert len(before) == 3 and {path: path.stat().st_mtime_ns for path in before} == before
    network = skeletons(SIZES)["denoiser"]
    load_weights(network, folder, "denoiser")


def test_an_installed_speech_encoder_is_taken(published: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(published, source)
    shutil.move(source / "speech", tmp_path / "wav2vec2-base-960h")
    with pytest.raises(
        WeightsError, match=r"the speech encoder .* is missing; .* 'omokage weights add speech'"
    ):
        add(source)
    add_weights("speech", tmp_path / "wav2vec2-base-960h")
    assert (add(source) / "speech" / "model.safetensors").is_file()


def lose_shard(source: Path) -> None:
    next((source / "transformer").glob("*-00002-of-*.safetensors")).unlink()


def lead_out(source: Path) -> None:
    path = source / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))


def break_shard(source: Path) -> None:
    path = next((source / "transformer").glob("*-00002-of-*.safetensors"))
    path.write_bytes(path.read_bytes()[:-10])


def other_precision(source: Path) -> None:
    path = source / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({key: value.to(torch.float64) for key, value in load_file(path).items()}, path)


def lose_tensor(source: Path) -> None:
    path = source / "vae" / "diffusion_pytorch_model.safetensors"
    save_file(dict(list(load_file(path).items())[1:]), path)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (
            lambda s: shutil.rmtree(s / "transformer"),
            r"the transformer \(.*\) is missing; fetch the whole release",
        ),
        (lambda s: shutil.rmtree(s / "vae"), r"the video autoencoder .* is missing"),
        (lambda s: shutil.rmtree(s / "tokenizer"), r"the tokenizer of .* is missing"),
        (lose_shard, r"00002-of-\d+\.safetensors is missing, damaged or incomplete; fetch it again"),
        (break_shard, r"00002-of-\d+\.safetensors is missing, damaged or incomplete; fetch it again"),
        (lead_out, "names files outside its folder"),
        (other_precision, "holds '.*' as F64; fetch the weights in 16 or 32 bits"),
        (lose_tensor, "1 are missing, such as"),
    ],
)
def test_unusable_files_are_refused(
    published: Path, tmp_path: Path, home: Path, harm: object, said: str
) -> None:
    source = tmp_path / "source"
    shutil.copytree(published, source)
    harm(source)  # type: ignore[operator]
    with pytest.raises(InputError, match=said) as refused:
        add(source)
    assert "\n" not in str(refused.value)
    assert not (home / "cogvideox").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"in_channels": 16},
            r"another size than CogVideoX-5B-I2V: 1 of its tensors do not fit, such as 'embedding",
        ),
        ({"num_layers": 1}, r"is not the expected model: of its tensors \d+ are missing"),
        ({"num_layers": 3}, r"\d+ are unknown, such as"),
        ({"ofs_embed_dim": 8}, r"unknown, such as 'ofs_embedding"),
    ],
)
def test_other_models_of_the_family_are_refused(tmp_path: Path, changes: dict[str, int], said: str) -> None:
    """Text to video, other depths, and version 1.5."""
    with pytest.raises(InputError, match=said):
        add(make_cogvideox_folder(tmp_path / "other", **changes))
