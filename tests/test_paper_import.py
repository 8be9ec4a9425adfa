"""Official checkpoints of StyleAvatar become avatar files: every tensor in its place, and nothing in them is run."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

from golden_fill import FOLDER
from official_styleavatar import official_content, official_shapes, official_state, save_official
from omokage.avatar.bundle import Avatar
from omokage.avatar.container import read_content
from omokage.avatar.paper import keys
from omokage.avatar.paper.bundle import PaperAvatar
from omokage.avatar.paper.config import (
    PortraitConfig,
    released_discriminator,
    released_portrait,
    released_style_unet,
    small_discriminator,
    small_portrait,
)
from omokage.avatar.paper.discriminator import Discriminator
from omokage.avatar.paper.portrait import PortraitGenerator
from omokage.avatar.paper.textures import TextureGenerator
from omokage.avatar.paper.unet import StyleUNet
from omokage.cli import app as cli
from omokage.config import Progress
from omokage.errors import BundleError, InputError
from omokage.official import KeyMap, read_official
from omokage.pipelines.import_styleavatar import ImportConfig, ImportResult, import_styleavatar
from plain_avatars import made_plain

SMALL, SMALL_CRITIC = small_portrait(), small_discriminator()
RELEASED = released_portrait()


def run(source: Path, **options: Any) -> ImportResult:
    config = ImportConfig(network=SMALL, discriminator=SMALL_CRITIC, **options)
    return import_styleavatar(source, output=source.with_suffix(".avatar"), config=config)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_official(tmp_path / "person_065000.pt", official_content())


@pytest.fixture
def imported(source: Path) -> Path:
    return run(source).path


# every key


NETWORKS: dict[str, tuple[KeyMap, Callable[[], nn.Module]]] = {
    "portrait": (keys.portrait_keys(RELEASED), lambda: PortraitGenerator(RELEASED)),
    "texture": (
        keys.texture_keys(RELEASED.texture, RELEASED.style),
        lambda: TextureGenerator(RELEASED.texture, RELEASED.style),
    ),
} | {
    f"discriminator {channels}": (
        keys.discriminator_keys(released_discriminator(channels=channels)),
        lambda channels=channels: Discriminator(released_discriminator(channels=channels)),
    )
    for channels in (3, 6)
} | {
    f"style_unet {side}": (
        keys.style_unet_keys(released_style_unet(side)),
        lambda side=side: StyleUNet(released_style_unet(side)),
    )
    for side in (256, 1024)
}  # fmt: skip


def listed(network: str) -> dict[str, tuple[int, ...]]:
    """Official key -> shape, of the list of a released network."""
    text = (FOLDER / "styleavatar_keys.txt").read_text(encoding="utf-8")
    lines = text.split(f"[{network}]\n")[1].split("[")[0].splitlines()
    shapes = dict(line.split(" ") for line in lines)
    return {key: tuple(int(side) for side in re.findall(r"\d+", shape)) for key, shape in shapes.items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_official_tensor_has_a_place_and_every_place_a_tensor(name: str) -> None:
    maps, build = NETWORKS[name]
    with torch.device("meta"):
        network = build()
    wanted = listed(name)
    assert len(wanted) > 100
    assert maps.names.keys() | maps.dropped == wanted.keys()
    assert not maps.names.keys() & maps.dropped
    assert sorted(maps.names.values()) == sorted(network.state_dict())
    assert official_shapes(maps, network) == wanted


def test_joins_are_counted_from_the_finest_level() -> None:
    """Two of them have the same shape, so that only their order tells them apart."""
    names = NETWORKS["portrait"][0].names
    joined = [names[f"comb_convs_1.{number}.0.weight"] for number in range(3)]
    assert joined == ["image.join.1.weight", "image.join.0.weight", "image.bottleneck.weight"]


# what comes out


def test_an_imported_avatar_draws_what_its_checkpoint_draws(source: Path, imported: Path) -> None:
    avatar = PaperAvatar.load(imported)
    assert (avatar.origin.checkpoint, avatar.time, avatar.config) == (source.name, 0.5, SMALL)
    official, maps = read_official(source), keys.portrait_keys(SMALL)
    state = avatar.generator.state_dict()
    assert all(
        torch.equal(official["g_ema"][theirs].flatten(), state[ours].flatten())
        for theirs, ours in maps.names.items()
    )
    assert torch.equal(avatar.face.features, official["feature_face"][:1])
    assert torch.equal(avatar.background.bands, official["skip_back"][:1])
    render, uv = torch.rand(2, 3, 32, 32) * 2 - 1, torch.rand(2, 3, 32, 32) * 2 - 1
    first = avatar.draw(render, uv)
    assert first.image.shape == (2, 3, 128, 128) and first.image.isfinite().all()
    assert not torch.allclose(first.image[0], first.image[1])
    # Noise is kept with it, which no official checkpoint does: another process draws the same.
    assert torch.equal(PaperAvatar.load(imported).draw(render, uv).image, first.image)


def test_an_import_is_repeatable(source: Path, imported: Path) -> None:
    before = read_content(imported)
    run(source)
    assert read_content(imported).header == before.header  # with the checksum over all arrays


def test_networks_for_training_are_kept_when_asked(source: Path) -> None:
    assert run(source).kept == ()
    result = run(source, keep_training=True)
    assert result.kept == ("generator", "face", "background", "discriminator")
    assert "for training: generator, face, background, discriminator" in result.to_text()
    training = PaperAvatar.load(result.path).training
    networks = {
        "generator": PortraitGenerator(SMALL),
        "face": TextureGenerator(SMALL.texture, SMALL.style),
        "background": TextureGenerator(SMALL.texture, SMALL.style),
        "discriminator": Discriminator(SMALL_CRITIC),
    }
    for name, network in networks.items():
        network.load_state_dict(training[name])
    averaged, last = PaperAvatar.load(result.path).generator.state_dict(), training["generator"]
    assert not torch.equal(averaged["mask.weight"], last["mask.weight"])


def test_a_small_release_without_training_state_is_enough(tmp_path: Path) -> None:
    content = official_content()
    for name in ("i_g", "f_g", "b_g", "d", "i_g_optim", "f_g_optim", "b_g_optim", "d_optim", "args"):
        del content[name]
    result = run(save_official(tmp_path / "small.pt", content), keep_training=True)
    assert result.kept == ()
    assert result.weights == sum(p.numel() for p in PortraitGenerator(SMALL).parameters())


def test_half_precision_is_widened(tmp_path: Path) -> None:
    content = official_content()
    content["g_ema"] = {key: value.half() for key, value in content["g_ema"].items()}
    avatar = PaperAvatar.load(run(save_official(tmp_path / "half.pt", content)).path)
    assert {value.dtype for value in avatar.generator.state_dict().values()} == {torch.float32}


def test_progress_and_words(source: Path) -> None:
    seen: list[Progress] = []
    config = ImportConfig(network=SMALL, discriminator=SMALL_CRITIC)
    result = import_styleavatar(
        source, output=source.with_suffix(".avatar"), config=config, on_progress=seen.append
    )
    assert [report.stage for report in seen] == ["reading", "writing", "writing"]
    text = result.to_text()
    assert "pictures of 128 pixels" in text and "does not work: 'omokage reenact'" in text


# the file


def test_it_is_of_a_kind_that_older_readers_refuse_in_one_sentence(imported: Path) -> None:
    with safe_open(made_plain(imported), framework="pt") as file:
        assert (
            file.metadata()["version"] == "5"
        )  # what up to 4 reads says: an avatar of format 5; update omokage
    with pytest.raises(
        BundleError, match="is an imported StyleAvatar, which can be neither driven nor measured"
    ):
        Avatar.load(imported)


@pytest.mark.parametrize("command", ["reenact {} driver.mp4 -o out.mp4", "evaluate {} -o report"])
def test_commands_that_cannot_use_it_say_so(
    imported: Path, command: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(imported.parent)
    (imported.parent / "driver.mp4").touch()
    code = cli.run(command.format(imported.name).split())
    said = capfd.readouterr().err
    assert code == 2 and "imported StyleAvatar" in said and said.count("\n") == 1
    assert not (imported.parent / "out.mp4").exists() and not (imported.parent / "report").exists()


def test_a_damaged_file_is_said(imported: Path) -> None:
    whole = imported.read_bytes()
    imported.write_bytes(whole[:-3] + b"\0\1\2")
    with pytest.raises(BundleError, match="do not match its checksum"):
        PaperAvatar.load(imported)
    imported.write_bytes(whole[:1000])
    with pytest.raises(BundleError, match="is damaged or not an avatar file"):
        PaperAvatar.load(imported)


# what is refused


class Runs:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


def refusal(path: Path, content: dict[str, Any]) -> str:
    with pytest.raises(InputError) as refused:
        run(save_official(path / "x.pt", content))
    assert not list(path.glob("x.avatar*"))
    said = str(refused.value)
    assert "\n" not in said and said.startswith(f"{path / 'x.pt'} ")
    return said


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    content = official_content()
    trap = tmp_path / "ran"
    for place in (content | {"extra": Runs(trap)}, content | {"args": argparse.Namespace(path=Runs(trap))}):
        said = refusal(tmp_path, place)
        assert "holds more than tensors and cannot be read safely" in said and "damaged" not in said
    assert not trap.exists()


def test_a_truncated_checkpoint_is_said(source: Path) -> None:
    whole = source.read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 100):
        source.write_bytes(whole[:size])
        with pytest.raises(InputError, match="is damaged") as refused:
            run(source)
        assert "more than tensors" not in str(refused.value)
    with pytest.raises(InputError, match="there is no checkpoint"):
        run(source.with_name("other.pt"))


def test_what_is_wrong_is_told_of_files_that_are_no_archives_too(tmp_path: Path) -> None:
    """As checkpoints were written before PyTorch 1.6."""
    path, trap = tmp_path / "old.pt", tmp_path / "ran"

    def said() -> str:
        with pytest.raises(InputError) as refused:
            read_official(path)
        return str(refused.value)

    torch.save({"a": torch.arange(9.0)}, path, _use_new_zipfile_serialization=False)
    assert torch.equal(read_official(path)["a"], torch.arange(9.0))
    whole = path.read_bytes()
    for size in (1, 20, len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:size])
        assert "is damaged" in said() and "more than tensors" not in said()
    torch.save({"a": Runs(trap)}, path, _use_new_zipfile_serialization=False)
    assert "holds more than tensors" in said() and "damaged" not in said() and not trap.exists()
    path.write_text("<html>log in</html>")
    assert "is damaged or no whole checkpoint" in said()


def test_the_single_network_is_told_from_the_full_one(tmp_path: Path) -> None:
    config = released_style_unet(64, 128)
    with torch.device("meta"):
        network = StyleUNet(config)
    maps = keys.style_unet_keys(config)
    shapes = official_shapes(maps, network)
    single = {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}
    said = refusal(tmp_path, {"g": single, "g_ema": single, "args": argparse.Namespace()})
    assert "is a checkpoint of StyleUNet, the single network" in said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1], "holds no averaged generator 'g_ema'"),
        ({"state_dict": {"a": torch.ones(1)}}, "holds no averaged generator 'g_ema'"),
        ({"g_ema": {}}, "holds no texture 'feature_face'"),
    ],
)
def test_other_files_are_told(tmp_path: Path, content: Any, said: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(InputError, match=re.escape(said)):
        run(tmp_path / "x.pt")


def test_missing_and_left_over_tensors_are_named(tmp_path: Path) -> None:
    content = official_content()
    lacking = dict(content["g_ema"])
    del lacking["get_mask.0.bias"]
    assert "its 'g_ema' lacks 'get_mask.0.bias'; give" in refusal(tmp_path, content | {"g_ema": lacking})
    more = content["d"] | {"a": torch.ones(1), "b": torch.ones(1)}
    assert "its 'd' has 'a' and 1 more tensors" in refusal(tmp_path, content | {"d": more})
    assert "holds 'plan', which no checkpoint of StyleAvatar has" in refusal(tmp_path, content | {"plan": 3})
    kept = {name: value for name, value in content.items() if name != "skip_back"}
    assert "holds no texture 'skip_back'" in refusal(tmp_path, kept)
    assert "holds 'a', which is no tensor" in refusal(tmp_path, content | {"d": content["d"] | {"a": 1}})


def test_other_sizes_are_said(tmp_path: Path) -> None:
    content = official_content()
    name = "convs_1.4.conv.weight"
    wider = content["g_ema"] | {name: torch.zeros(1, 9, 12, 3, 3)}
    said = refusal(tmp_path, content | {"g_ema": wider})
    assert f"of other sizes than the released one: its 'g_ema.{name}' is 1x9x12x3x3, and 8x12x3x3" in said
    # The numbers of a transposed kernel would fit, its meaning would not.
    turned = content["g_ema"] | {name: content["g_ema"][name].transpose(1, 2)}
    assert "is 1x12x8x3x3" in refusal(tmp_path, content | {"g_ema": turned})
    small = content | {"feature_face": torch.zeros(1, 8, 8, 8)}
    assert "its texture 'feature_face' is 1x8x8x8, and 1x8x16x16 is needed" in refusal(tmp_path, small)


def test_a_released_checkpoint_is_what_the_command_expects(
    source: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The small file is of other sizes for it; and nothing is written."""
    code = cli.run(["import", "styleavatar", str(source), "-o", str(source.with_name("me.avatar"))])
    assert code == 2 and "than the released one" in capfd.readouterr().err
    assert not source.with_name("me.avatar").exists()
    code = cli.run(["import", "styleavatar", str(source), "-o", str(source)])
    assert code == 3 and "is also an input" in capfd.readouterr().err


def test_sizes_of_tests_and_of_the_release_share_their_layout() -> None:
    """The same official names at both sizes, but for the number of levels."""

    def kinds(config: PortraitConfig) -> set[str]:
        return {re.sub(r"\.\d+", ".N", name) for name in keys.portrait_keys(config).names}

    assert kinds(SMALL) == kinds(RELEASED)
    assert official_state("d", keys.discriminator_keys(SMALL_CRITIC), Discriminator(SMALL_CRITIC))
