"""Two runtimes, one result: exported graphs against PyTorch, 8 bits, stillness, backgrounds."""

from __future__ import annotations

import copy
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from scipy import ndimage

from omokage.avatar.bundle import Avatar
from omokage.avatar.conditioning import Conditioner
from omokage.avatar.config import PRESETS, compact_128
from omokage.avatar.generator import MOTION_SIZE
from omokage.avatar.samples import avatar_state
from omokage.errors import InputError, OutputError
from omokage.geometry.rasterize import rasterize_reference
from omokage.pipelines.stand_in import stand_in
from omokage.render import renderer as renderer_module
from omokage.render.export import export_onnx
from omokage.render.lookup import CLEAR, Texture, compose, pull_cells, smooth_rims
from omokage.render.renderer import Renderer, TorchRuntime, fit_background, recorded_conditions, runtime_psnr

ENGINES = [
    "onnxruntime",
    pytest.param("openvino", marks=pytest.mark.skipif(not find_spec("openvino"), reason="not installed")),
]
SIZE = 128


@pytest.fixture(scope="module")
def avatar() -> Avatar:
    torch.set_num_threads(1)
    return stand_in(SIZE, frame_count=8, clip_side=192).avatar


def test_a_condition_is_what_the_plain_rasteriser_gives(avatar: Avatar) -> None:
    conditioner: Conditioner = avatar.conditioner
    state = avatar_state(avatar.track, 5)
    condition = conditioner.draw(state)
    points, _ = conditioner.project(state)
    raster = rasterize_reference(points, conditioner.triangles, SIZE, SIZE)
    corners = conditioner.triangles[raster.triangle_id]
    warp = np.einsum("hwk,hwkc->chw", raster.barycentric, conditioner.atlas_uv[corners])
    regions = np.einsum("hwk,hwkc->chw", raster.barycentric, conditioner.regions[corners])
    warp[:, ~raster.is_covered] = conditioner.atlas_uv[-1][:, None]
    regions[:, ~raster.is_covered] = 0
    assert raster.is_covered.mean() > 0.9
    np.testing.assert_allclose(condition.warp, warp, atol=1e-5)
    np.testing.assert_allclose(condition.drawing[3:6], regions[:, 2::4, 2::4], atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_graph_gives_the_same_picture_as_torch(avatar: Avatar, engine: str) -> None:
    truth, graph = TorchRuntime(avatar.generator), Renderer(avatar, runtime=f"{engine}-fp32", threads=1)
    without_network = copy.deepcopy(avatar.generator)
    torch.nn.init.zeros_(without_network.head.weight)
    for condition in recorded_conditions(avatar, 3):
        expected = truth.portrait(condition)
        np.testing.assert_allclose(graph.runtime.portrait(condition), expected, atol=1e-3)
        plain = TorchRuntime(without_network).portrait(condition)
        assert np.abs(plain - expected).max() > 0.02  # the network has a say in what was compared


def test_a_graph_of_wider_cells_gives_the_same_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells of 8 pixels and convolutions of single cells, as at 512."""
    sizes = replace(compact_128(), wavelet_levels=3, stem_kernel=1, widths=(16, 24))
    monkeypatch.setitem(PRESETS, SIZE, lambda: sizes)
    person = stand_in(SIZE, frame_count=8, clip_side=192).avatar
    truth, graph = TorchRuntime(person.generator), Renderer(person, runtime="onnxruntime-fp32", threads=1)
    for condition in recorded_conditions(person, 2):
        expected = truth.portrait(condition)
        np.testing.assert_allclose(graph.runtime.portrait(condition), expected, atol=1e-3)


def test_the_edge_of_the_face_has_no_steps() -> None:
    """A slanted edge between the charts: its pixels are the weighted mean around them, all others as they were."""
    rows, columns = np.mgrid[:24, :24]
    warp = np.stack([np.where(columns > rows / 3 + 6, 0.4, -0.4)] * 2).astype(np.float32)
    portrait = np.stack([np.where(warp[0] < 0, 0.9, 0.1)] * 4).astype(np.float32)
    before = portrait.copy()
    smooth_rims(portrait, warp)
    rim = np.zeros((24, 24), dtype=bool)
    for axis in (0, 1):
        differs = np.diff(warp[0], axis=axis) != 0
        for side in (slice(None, -1), slice(1, None)):
            rim[side if axis == 0 else slice(None), side if axis == 1 else slice(None)] |= differs
    rim[[0, -1]] = False
    assert 30 < rim.sum() < 80
    expected = ndimage.correlate(before[0], np.outer([1, 2, 1], [1, 2, 1]) / 16, mode="nearest")
    for plane, old in zip(portrait, before, strict=True):
        np.testing.assert_array_equal(plane[~rim], old[~rim])
        np.testing.assert_allclose(plane[rim], expected[rim], atol=1e-6)
    inner = portrait[0, 1:-1]
    assert np.abs(np.diff(inner, axis=1)).max() < 0.5 < np.abs(np.diff(before[0], axis=1)).max()


@pytest.mark.parametrize("engine", ENGINES)
def test_eight_bits_are_close_and_are_refused_when_they_are_not(
    avatar: Avatar, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Renderer(avatar, runtime=f"{engine}-int8", threads=1)
    exact = TorchRuntime(avatar.generator)
    psnr = runtime_psnr(small.runtime, exact, recorded_conditions(avatar, 3), avatar.plate)
    assert 45 < psnr < 90  # close, and really in 8 bits
    monkeypatch.setattr(renderer_module, "MIN_INT8_PSNR", 200.0)
    assert Renderer(avatar, runtime=engine, threads=1).name == f"{engine}-fp32"


def test_auto_takes_the_cheapest_that_is_good_enough(avatar: Avatar, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renderer_module, "cost_per_picture", lambda r, _: "onnxruntime-int8" not in r.name)
    assert Renderer(avatar, threads=1).name == "onnxruntime-int8"
    monkeypatch.setattr(renderer_module, "cost_per_picture", lambda r, _: "fp32" not in r.name)
    assert Renderer(avatar, threads=1).name.endswith("-fp32")


def test_the_same_state_gives_the_same_bytes(avatar: Avatar) -> None:
    state, other = avatar_state(avatar.track, 2), avatar_state(avatar.track, 6)
    renderer = Renderer(avatar, runtime="onnxruntime-int8", threads=1)
    first = renderer.render(state)
    assert (renderer.render(other).image != first.image).any()
    again = Renderer(avatar, runtime="onnxruntime-int8", threads=1).render(state)
    for portrait in (renderer.render(state), again):
        assert portrait.image.tobytes() == first.image.tobytes()
        assert portrait.rgba().tobytes() == first.rgba().tobytes()


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime-fp32"])
def test_still_background_never_changes(avatar: Avatar, runtime: str) -> None:
    """A network that leaks a little opacity everywhere still leaves the plate's bytes alone."""
    generator = copy.deepcopy(avatar.generator)
    generator.colors[:, 3, :, generator.colors.shape[3] // 2 :] = 0.5 * CLEAR  # the sheet: nearly clear
    torch.nn.init.zeros_(generator.head.weight)
    torch.nn.init.zeros_(generator.head.bias)
    plate = np.random.default_rng(0).integers(0, 256, avatar.plate.shape, dtype=np.uint8)
    renderer = Renderer(replace(avatar, generator=generator, plate=plate), runtime=runtime, threads=1)
    portraits = [renderer.render(avatar_state(avatar.track, row)) for row in range(0, 8, 2)]
    clear = np.all([p.matte == 0 for p in portraits], axis=0)
    assert 0.3 < clear.mean() < 0.95
    for portrait in portraits:
        np.testing.assert_array_equal(portrait.image[clear], plate[clear])
        assert (portrait.image[portrait.matte > 200] != plate[portrait.matte > 200]).mean() > 0.5


def test_backgrounds(avatar: Avatar) -> None:
    state = avatar_state(avatar.track, 3)
    picture = np.random.default_rng(1).integers(0, 256, (90, 300, 4), dtype=np.uint8)
    background = fit_background(picture, SIZE)
    portrait = Renderer(avatar, runtime="torch", background=background).render(state)
    rgba = portrait.rgba().astype(float)
    assert rgba.shape == (SIZE, SIZE, 4)
    share = rgba[..., 3:] / 255
    pasted = rgba[..., :3] * share + background * (1 - share)
    assert np.abs(pasted - portrait.image).max() <= 2.0  # color and matte are rounded to bytes
    with pytest.raises(InputError, match="90x300x4"):
        Renderer(avatar, runtime="torch", background=picture)


@pytest.mark.parametrize("runtime", ["cuda", "torch-int8", "onnxruntime-fp16", "auto-int8"])
def test_an_unknown_runtime_is_refused(avatar: Avatar, runtime: str) -> None:
    with pytest.raises(InputError, match="choose one of auto, torch"):
        Renderer(avatar, runtime=runtime)


def test_composition_of_known_values() -> None:
    portrait = np.array(
        [[[2.0, -1.0, 0.5, 1.0], [1.0, 1.0, 1.0, 0.9 * CLEAR], [1.0, 0.0, 0.0, 0.5]]], np.float32
    )
    background = np.full((1, 3, 3), 100, dtype=np.uint8)
    picture, color, matte = compose(np.ascontiguousarray(portrait.transpose(2, 0, 1)), background)
    np.testing.assert_array_equal(picture[0], [[255, 0, 128], [100, 100, 100], [178, 50, 50]])
    np.testing.assert_array_equal(matte[0], [255, 0, 128])
    np.testing.assert_array_equal(color[0, 2], [255, 0, 0])


def test_the_exported_file(avatar: Avatar, tmp_path: Path) -> None:
    path = tmp_path / "avatar.onnx"
    export_onnx(avatar.generator, path)
    assert [file.name for file in tmp_path.iterdir()] == ["avatar.onnx"]
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert model.opset_import[0].version >= 17
    shapes = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in model.graph.input
    }
    cells = pull_cells(Texture.of(avatar.generator), avatar.conditioner.draw(avatar_state(avatar.track, 0)))
    assert shapes == {"cells": list(cells.shape), "motion": [1, MOTION_SIZE]}
    with pytest.raises(OutputError, match="create the folder first"):
        export_onnx(avatar.generator, tmp_path / "nowhere" / "avatar.onnx")
