"""The avatar: wavelets, drawing, explicit composition, training, exact resume, bundle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from omokage.avatar.appearance import Appearance, principal_modes
from omokage.avatar.bundle import Avatar, Provenance
from omokage.avatar.conditioning import AvatarState, Condition, Conditioner
from omokage.avatar.config import AvatarConfig, preset_for
from omokage.avatar.generator import Generator, composite
from omokage.avatar.registration import ExplicitAvatar, build_explicit
from omokage.avatar.run import Run, TrainingConfig
from omokage.avatar.samples import avatar_state, choose_crop, cut_out, split_tail
from omokage.avatar.sheet import Crop, Pose, Sheet
from omokage.avatar.texture import Sample, estimate_plate, fill_holes
from omokage.avatar.train import Loader, train_avatar
from omokage.avatar.wavelets import haar, inverse_haar
from omokage.errors import BundleError, InputError
from omokage.tracking.face_track import FaceTrack
from omokage.tracking.matting import MediaPipeMatte
from omokage.tracking.morphable import MorphableModel
from omokage.tracking.sway import ZONE_COUNT
from omokage.tracking.synthetic import SyntheticSubject
from plain_avatars import made_plain

SIZE = 128
TINY = TrainingConfig(steps=6, batch=2, threads=1, checkpoint_seconds=1e9)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


@pytest.fixture(scope="module")
def recording() -> tuple[FaceTrack, Sequence[Sample], Conditioner]:
    """Three seconds of the synthetic subject with its true track: no tracker's error in these tests."""
    subject = SyntheticSubject(seed=3)
    track = subject.performance(3.0, frame_rate=15.0, size=256, motion=0.6)
    crop, matting = choose_crop(track), MediaPipeMatte()
    samples = []
    for row, frame in enumerate(subject.render_clip(track)):
        image = cut_out(frame.image, crop, SIZE)
        matte = np.round(matting.matte(image) * 255).astype(np.uint8)
        samples.append(Sample(image, matte, avatar_state(track, row)))
    model = MorphableModel.load()
    rest = Pose(np.median(track.rotation, 0), np.median(track.translation, 0), np.median(track.sway, 0))
    sheet = Sheet.build(model, track.subject, rest=rest, camera=track.camera, crop=crop)
    return track, samples, Conditioner(model, track.subject, sheet, crop, preset_for(SIZE))


@pytest.fixture(scope="module")
def explicit(recording: tuple[FaceTrack, Sequence[Sample], Conditioner]) -> ExplicitAvatar:
    _, samples, conditioner = recording
    return build_explicit(conditioner, samples[::2])


def test_haar_matches_the_reference_values_and_inverts() -> None:
    block = torch.tensor([[[[1.0, 2.0], [4.0, 8.0]]]])
    assert haar(block).flatten().tolist() == [7.5, -4.5, -2.5, 1.5]
    image = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(inverse_haar(haar(image)), image, atol=1e-6)


def test_preset_needs_a_known_size_and_a_divisible_one() -> None:
    with pytest.raises(InputError, match="128, 256, 512"):
        preset_for(300)
    with pytest.raises(InputError, match="multiple of 16"):
        AvatarConfig(
            size=120,
            wavelet_levels=2,
            widths=(8, 8, 8),
            stem_kernel=3,
            head_kernel=1,
            texture_size=32,
            texture_channels=4,
            texture_modes=2,
            code_size=2,
        )


def test_untrained_generator_is_the_explicit_composition(explicit: ExplicitAvatar, recording) -> None:  # type: ignore[no-untyped-def]
    """Before step 0 the network adds nothing: the first picture already shows the person."""
    _, samples, _ = recording
    run = Run.start(explicit, 4, TINY)
    condition = explicit.conditioner.draw(samples[5].state)
    tensors = [
        torch.from_numpy(a)[None]
        for a in (condition.warp, condition.drawing, condition.motion, condition.mixture)
    ]
    with torch.no_grad():
        color, matte = run.generator(*tensors, torch.zeros(1, 8))
    plate = torch.from_numpy(explicit.plate / np.float32(255)).permute(2, 0, 1)
    ours = composite(color, matte, plate)[0].permute(1, 2, 0).numpy() * 255
    reference = explicit.portrait(samples[5].state)
    assert np.abs(ours - reference).mean() < 0.5


def test_explicit_avatar_shows_unseen_frames(explicit: ExplicitAvatar, recording) -> None:  # type: ignore[no-untyped-def]
    """Frames between those it was made of: better than their mean picture, without any training."""
    _, samples, _ = recording
    mean = np.mean([s.image for s in samples[::2]], axis=0)
    head = slice(20, 115), slice(25, 105)
    shown = [psnr(explicit.portrait(s.state)[head], s.image[head]) for s in samples[1::6]]
    still = [psnr(mean[head], s.image[head]) for s in samples[1::6]]
    assert np.mean(shown) > 20.5
    assert np.mean(shown) > np.mean(still) + 1


def test_changing_texture_shows_unseen_frames_better(explicit: ExplicitAvatar, recording) -> None:  # type: ignore[no-untyped-def]
    """What moves on the surface, teeth and lids and shading, follows the state."""
    _, samples, _ = recording
    still = replace(explicit, modes=np.zeros_like(explicit.modes))
    shown, plain = ([psnr(e.portrait(s.state), s.image) for s in samples[1::6]] for e in (explicit, still))
    assert np.mean(shown) > np.mean(plain) + 0.3


def test_appearance_remembers_its_keys_and_fades_far_from_them() -> None:
    rng = np.random.default_rng(0)
    poses, expressions = rng.normal(size=(20, 10)), 0.2 * rng.random((20, 52))
    appearance = Appearance(poses, expressions, rng.normal(size=(2, 20, 3)))
    at_key = appearance.mixture(poses[4], expressions[4])
    assert np.abs(at_key - appearance.strengths[:, 4]).mean() < np.abs(appearance.strengths).mean() / 2
    assert np.abs(appearance.mixture(poses[4] + 50, expressions[4])).max() < 1e-6
    without = appearance.mixture_without(poses[4], expressions[4], [4])
    assert (
        np.abs(without - appearance.strengths[:, 4]).mean()
        > np.abs(at_key - appearance.strengths[:, 4]).mean()
    )
    assert np.array_equal(appearance.mixture_without(poses[4], expressions[4], range(20)), np.zeros((2, 3)))


def test_modes_give_back_the_differences_they_were_made_of() -> None:
    differences = np.random.default_rng(1).normal(size=(5, 40))
    modes, strengths = principal_modes(differences, 8)
    assert np.allclose(strengths @ modes, differences) and not modes[5:].any()
    first, few = principal_modes(differences, 2)
    assert np.linalg.norm(differences - few @ first) < np.linalg.norm(differences)


def test_drawing_shifts_exactly_with_the_window(recording) -> None:  # type: ignore[no-untyped-def]
    _, samples, conditioner = recording
    still = conditioner.draw(samples[0].state)
    moved = conditioner.draw(samples[0].state, (8, -4))
    assert np.allclose(moved.warp[:, 8:-8, 12:-4], still.warp[:, 12:-4, 4:-12], atol=1e-5)
    assert np.allclose(moved.drawing[:, 2:-2, 3:-1], still.drawing[:, 3:-1, 1:-3], atol=1e-5)


def test_plate_is_the_background_behind_the_person() -> None:
    background = np.full((6, 16, 16, 3), 80, np.uint8)
    mattes = np.zeros((6, 16, 16), np.uint8)
    for i in range(6):
        background[i, :, 2 * i : 2 * i + 4] = 200
        mattes[i, :, 2 * i : 2 * i + 4] = 255
    assert np.abs(estimate_plate(background, mattes).astype(int) - 80).max() <= 1


def test_holes_are_filled_from_around() -> None:
    image, known = np.full((32, 32, 3), 90, np.uint8), np.ones((32, 32), bool)
    image[8:20, 8:20], known[8:20, 8:20] = 0, False
    assert np.abs(fill_holes(image, known).astype(int) - 90).max() <= 1


def test_training_improves_on_the_explicit_avatar(explicit: ExplicitAvatar, recording) -> None:  # type: ignore[no-untyped-def]
    _, samples, _ = recording
    config = replace(TINY, steps=60, batch=4, window=0)
    result = train_avatar(explicit, samples[::2], config)
    before = np.mean([psnr(explicit.portrait(s.state), s.image) for s in samples[::6]])
    assert result.curve[-1][2] > before + 0.5


def test_a_killed_run_goes_on_exactly(explicit: ExplicitAvatar, recording, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    _, samples, _ = recording
    config = replace(TINY, adversarial=0.01, adversarial_from=0.3)
    whole = train_avatar(explicit, samples[:20], config)

    class Killed(Exception):
        pass

    def kill_at_four(progress) -> None:  # type: ignore[no-untyped-def]
        if progress.done >= 4 / 6:
            raise Killed

    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Killed):
        train_avatar(
            explicit,
            samples[:20],
            replace(config, checkpoint_seconds=0),
            checkpoint=path,
            on_progress=kill_at_four,
        )
    resumed = train_avatar(explicit, samples[:20], config, checkpoint=path)
    for one, other in zip(whole.generator.parameters(), resumed.generator.parameters(), strict=True):
        assert torch.equal(one, other)


def test_checkpoint_of_another_avatar_is_refused(explicit: ExplicitAvatar, recording, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    _, samples, _ = recording
    path = tmp_path / "checkpoint.safetensors"
    train_avatar(explicit, samples[:20], replace(TINY, steps=1), checkpoint=path)
    with pytest.raises(InputError, match="remove it to start again"):
        train_avatar(explicit, samples[:19], replace(TINY, steps=1), checkpoint=path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="remove it to start again"):
        train_avatar(explicit, samples[:20], replace(TINY, steps=1), checkpoint=path)


def test_collapse_guard_trusts_a_winning_critic_less(explicit: ExplicitAvatar, recording) -> None:  # type: ignore[no-untyped-def]
    from omokage.avatar import train as module

    _, samples, _ = recording
    config = replace(TINY, adversarial=0.01, adversarial_from=0.0)
    run, loader = Run.start(explicit, 20, config), Loader(explicit, samples[:20], config)
    with torch.no_grad():
        # A critic that tells everything real from everything drawn, by a margin.
        for layer in run.critic.layers:
            if isinstance(layer, torch.nn.Conv2d) and layer.out_channels == 1:
                layer.bias.fill_(0.0)
    _, batch = loader.batch(0)
    fake = torch.zeros_like(batch.image)
    run.critic.forward = lambda image, drawing: (  # type: ignore[method-assign]
        torch.where(image.abs().sum() > 0, 5.0, -5.0)
        * run.critic.layers[0].weight.sum().mul(0).add(1).expand(1)
    )
    for _ in range(50):
        module._critic_step(run, fake, batch)
    assert run.critic_trust < 0.5


def test_split_keeps_the_tail_in_time() -> None:
    track = SyntheticSubject(seed=1).performance(4.0, frame_rate=25.0, size=64)
    hidden = np.zeros(len(track), bool)
    hidden[10:20] = True
    track = replace(track, is_tracked=~hidden)
    split = split_tail(track, cap=1000)
    assert split.train.max() < split.held_out.min() and (len(split.train), len(split.held_out)) == (72, 18)
    assert not set(split.train) & set(range(10, 20))
    assert len(split_tail(track, cap=30).train) <= 30
    gone = replace(track, is_tracked=np.arange(len(track)) < 70)
    assert split_tail(gone, cap=1000).held_out.max() == 69  # a face that leaves early still has a tail


def bundle(explicit: ExplicitAvatar, track: FaceTrack) -> Avatar:
    generator = Generator(explicit.conditioner.config).eval()
    torch.manual_seed(1)
    torch.nn.init.normal_(generator.head.weight, std=0.01)
    provenance = Provenance("00", "me.mp4", "/nowhere/me.mp4", "25", False, None, 1.0, 10, "0.1.0")
    skin = np.full((468, 3), 0.01)
    return Avatar(
        generator, explicit.conditioner, explicit.plate, track, skin, provenance, {"split": "last-20%"}
    )


def test_bundle_round_trip_gives_the_same_pictures(
    explicit: ExplicitAvatar, recording, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    track, samples, _ = recording
    avatar, path = bundle(explicit, track), tmp_path / "me.avatar"
    avatar.save(path)
    again = Avatar.load(path)
    assert again.provenance == avatar.provenance and again.evaluation == avatar.evaluation
    assert np.array_equal(again.track.rotation, track.rotation)
    one, other = (a.conditioner.draw(samples[3].state) for a in (avatar, again))
    assert np.array_equal(one.warp, other.warp)
    inputs = inputs_of(one)
    with torch.no_grad():
        pictures = [a.generator(*inputs, torch.zeros(1, 8))[0] for a in (avatar, again)]
    assert torch.allclose(*pictures, atol=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == ["me.avatar"]


def inputs_of(condition: Condition) -> list[torch.Tensor]:
    parts = (condition.warp, condition.drawing, condition.motion, condition.mixture)
    return [torch.from_numpy(part)[None] for part in parts]


@pytest.mark.parametrize("version", [1, 2, 3])
def test_older_bundles_stay_readable(
    version: int, explicit: ExplicitAvatar, recording, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    """3 had a wider head and no usual skin; 1 and 2 a torso of four numbers; 1 had no texture that changes and a sheet
    that follows pose alone."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    from omokage.avatar.container import checksum

    track, samples, _ = recording
    path = tmp_path / "old.avatar"
    avatar = bundle(explicit, track)
    avatar.save(path)
    with safe_open(made_plain(path), framework="pt") as file:
        header = json.loads(file.metadata()["header"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del header["sha256"], tensors["skin"], header["config"]["stem_kernel"], header["config"]["head_kernel"]
    for name in ("generator.head.weight", "generator.offset.weight"):
        tensors[name] = torch.nn.functional.pad(tensors[name], (1, 1, 1, 1))
    if version == 3:
        header["sha256"] = checksum(tensors, header)
        save_file(tensors, path, {"format": "omokage.avatar", "version": "3", "header": json.dumps(header)})
        again, condition = Avatar.load(path), explicit.conditioner.draw(samples[3].state)
        shown = [a.generator(*inputs_of(condition), torch.zeros(1, 8))[0] for a in (avatar, again)]
        assert torch.allclose(*shown, atol=1e-5) and not again.skin.any()
        return
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("sway")}
    rows, keys = len(tensors["track.time_s"]), len(tensors["appearance.poses"])
    tensors |= {"track.torso": torch.ones(rows, 4), "sheet.rest.torso": torch.ones(4)}
    header["torso_weight"] = 1.0
    response = tensors["sheet.response"]
    by_torso = torch.ones(len(response), 4, 2, dtype=response.dtype)
    tensors["sheet.response"] = torch.cat([response[:, :7], by_torso, response[:, 7:]], dim=1)
    tensors["appearance.poses"] = torch.cat(
        [tensors["appearance.poses"], torch.ones(keys, 4).double()], dim=1
    )
    known = explicit.conditioner.sheet.response.copy()
    if version == 1:
        tensors = {
            n: t for n, t in tensors.items() if n != "generator.modes" and not n.startswith("appearance.")
        }
        tensors["sheet.response"] = tensors["sheet.response"][:, :11].contiguous()
        del header["config"]["texture_modes"]
        known[:, 7:] = 0
    header["sha256"] = checksum(tensors, header)
    save_file(
        tensors, path, {"format": "omokage.avatar", "version": str(version), "header": json.dumps(header)}
    )
    avatar = Avatar.load(path)
    state = samples[3].state
    still = replace(state, pose=replace(state.pose, sway=explicit.conditioner.sheet.rest.sway))
    same = explicit.conditioner.with_sheet(replace(explicit.conditioner.sheet, response=known)).draw(still)
    here = replace(state, pose=replace(state.pose, sway=np.zeros((ZONE_COUNT, 2))))
    condition = avatar.conditioner.draw(here)
    assert np.array_equal(condition.warp, same.warp)
    if version == 1:
        assert condition.mixture.shape == (2, 1) and not condition.mixture.any()
    else:
        np.testing.assert_allclose(condition.mixture, same.mixture, atol=1e-5)
    color, _ = Avatar.load(path).generator(*inputs_of(condition), torch.zeros(1, 8))
    assert color.shape == (1, 3, SIZE, SIZE) and torch.isfinite(color).all()


def test_damaged_foreign_and_newer_bundles_say_so(
    explicit: ExplicitAvatar, recording, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    from safetensors.numpy import save

    track, _, _ = recording
    path = tmp_path / "me.avatar"
    bundle(explicit, track).save(path)
    whole = made_plain(path).read_bytes()

    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0x40
    path.write_bytes(flipped)
    with pytest.raises(BundleError, match="damaged"):
        Avatar.load(path)
    path.write_bytes(whole.replace(b'\\"head_width\\": 1', b'\\"head_width\\": 2', 1))
    assert path.read_bytes() != whole
    with pytest.raises(BundleError, match="checksum"):
        Avatar.load(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BundleError, match="damaged"):
        Avatar.load(path)
    path.write_text("hello")
    with pytest.raises(BundleError, match="damaged or not an avatar"):
        Avatar.load(path)
    path.write_bytes(save({"x": np.zeros(1)}, {"format": "something else"}))
    with pytest.raises(BundleError, match="not an avatar file"):
        Avatar.load(path)
    path.write_bytes(save({"x": np.zeros(1)}, {"format": "omokage.avatar", "version": "9", "header": "{}"}))
    with pytest.raises(BundleError, match="update omokage"):
        Avatar.load(path)
    with pytest.raises(BundleError, match="omokage create"):
        Avatar.load(tmp_path / "none.avatar")


def test_crop_is_square_inside_and_around_the_head() -> None:
    track = SyntheticSubject(seed=1).performance(1.0, frame_rate=10.0, size=256)
    landmarks = np.zeros((len(track), 478, 3), np.float32)
    landmarks[:, :, 0], landmarks[:, :, 1] = np.linspace(480, 560, 478), np.linspace(90, 170, 478)
    wide = replace(track, camera=replace(track.camera, width=640, height=256), landmarks=landmarks)
    crop = choose_crop(wide)
    assert crop.left >= 0 and crop.left + crop.side <= 640 and crop.top + crop.side <= 256 + 1e-6
    center = np.median(landmarks[:, :468, 0])
    assert crop.left < center < crop.left + crop.side
    assert choose_crop(track) == Crop(0.0, 0.0, 256.0)


def test_state_is_what_the_track_says() -> None:
    track = SyntheticSubject(seed=1).performance(1.0, frame_rate=10.0, size=64)
    state = avatar_state(track, 3)
    assert isinstance(state, AvatarState)
    assert np.allclose(state.pose.rotation, track.rotation[3]) and np.allclose(
        state.expression, track.expression[3]
    )
