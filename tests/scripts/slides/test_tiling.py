# Copyright (c) CDWS-MIL contributors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.


"""Tiles against the network on the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scripts.demo.phantoms import draw_phantom
from scripts.images.slide import Slide
from scripts.networks import CDWSNet, PyramidNet, UNet
from scripts.runtime.errors import InputError
from scripts.slides import SlideInference
from scripts.slides.tiling import TileGrid, exact_margin

RECOMMENDED = Path(__file__).resolve().parents[3] / "bundle" / "models" / "area_ranked.pt"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def inference(network, **settings) -> SlideInference:
    settings = {
        "slides": {},
        "output_dir": ".",
        "loader": lambda _: None,
        "mpp": 1.0,
        "mean": MEAN,
        "std": STD,
    } | settings
    return SlideInference(network=network.eval(), **settings)


def tiled_and_whole(network, view, size: int, margin: int | str) -> tuple[np.ndarray, np.ndarray]:
    """The map (H, W) of a view from tiles; and that of the network on all of it at once."""
    run = inference(network, tile_size=size, tile_margin=margin)
    grid = TileGrid(view.width, view.height, size, run.margin, run.stride)
    tiled = np.full((view.height, view.width), np.nan)
    for tile, part in run.map_tiles(view, grid, grid):
        tiled[tile.top : tile.top + part.shape[0], tile.left : tile.left + part.shape[1]] = part
    pixels = view.read(0, grid.padded_height, 0, grid.padded_width)
    image = torch.tensor(((pixels - MEAN) / STD).transpose(2, 1, 0), dtype=torch.float32)  # (3, W, H), as MONAI's
    with torch.no_grad():
        whole = network(image[None])[0, 0].T.numpy()[: view.height, : view.width]
    return tiled, whole


@pytest.mark.parametrize("size", [32, 96])
@pytest.mark.parametrize(("height", "width"), [(147, 131), (64, 199)])
def test_no_seams(lively_network, write_slide, tissue_picture, tmp_path, size, height, width):
    view = Slide(write_slide(tmp_path / "a.tif", tissue_picture(height, width), 1.0)).at(1.0)
    tiled, whole = tiled_and_whole(lively_network, view, size, "auto")
    assert whole.std() > 0.05  # a flat map would hide everything
    np.testing.assert_allclose(tiled, whole, atol=1e-5)


def test_no_seams_between_levels(lively_network, write_slide, tissue_picture, tmp_path):
    view = Slide(write_slide(tmp_path / "a.tif", tissue_picture(400, 500), 0.37, factors=(1, 2))).at(1.0)
    tiled, whole = tiled_and_whole(lively_network, view, 48, "auto")
    np.testing.assert_allclose(tiled, whole, atol=1e-5)


@pytest.mark.parametrize("settings", [{"stages": 2, "fusion_weights": [0.4, 0.6]}, {"deep_supervision": False}])
def test_no_seams_of_the_variants(write_slide, tissue_picture, tmp_path, settings):
    torch.manual_seed(1)
    network = CDWSNet(**settings).eval()
    for side in network.sides:
        torch.nn.init.normal_(side.weight, std=0.5)
    view = Slide(write_slide(tmp_path / "a.tif", tissue_picture(150, 130), 1.0)).at(1.0)
    tiled, whole = tiled_and_whole(network, view, 48, "auto")
    np.testing.assert_allclose(tiled, whole, atol=1e-5)


def test_less_margin_has_seams(lively_network, write_slide, tissue_picture, tmp_path):
    view = Slide(write_slide(tmp_path / "a.tif", tissue_picture(147, 131), 1.0)).at(1.0)
    tiled, whole = tiled_and_whole(lively_network, view, 48, 12)
    assert np.abs(tiled - whole).max() > 1e-4


@pytest.mark.parametrize(("stages", "field", "stride"), [(1, 5, 1), (2, 14, 2), (3, 40, 4), (4, 92, 8)])
def test_tiles_overlap_by_the_receptive_field(stages, field, stride):
    margin, found_stride, exact = exact_margin(CDWSNet(stages, fusion_weights=[1 / stages] * stages))
    assert exact
    assert found_stride == stride
    assert 2 * margin >= field
    assert margin % stride == 0


def test_tiles_of_the_recommended_network_have_its_masks(write_slide, tmp_path):
    """But for one pixel in a thousand: it sees further than the margin."""
    network = PyramidNet().eval()
    network.load_state_dict(torch.load(RECOMMENDED, weights_only=True))
    rng = np.random.default_rng(0)
    picture = np.hstack([draw_phantom(rng, (320, 320), cancer=True)[0] for _ in range(2)])
    view = Slide(write_slide(tmp_path / "a.tif", picture, 1.0)).at(1.0)
    differing = {}
    for margin in ("auto", 32):
        tiled, whole = tiled_and_whole(network, view, 320, margin)
        differing[margin] = ((tiled >= 0.5) != (whole >= 0.5)).mean()
    assert 0.05 < (whole >= 0.5).mean() < 0.95
    assert differing["auto"] <= 0.001 < differing[32]


@pytest.mark.parametrize(
    ("network", "margin", "warns"),
    [
        (UNet(), "auto", True),
        (PyramidNet(), "auto", False),
        (PyramidNet(), 64, True),
        (PyramidNet("resnet18"), "auto", True),
    ],
)
def test_networks_whose_map_depends_on_the_tiles_warn(network, margin, warns, caplog):
    inference(network, tile_margin=margin)
    assert ("seams" in caplog.text) == warns


def test_exact_networks_do_not_warn(lively_network, caplog):
    inference(lively_network)
    assert not caplog.text


def test_grid_covers_every_pixel_once():
    grid = TileGrid(101, 66, size=32, margin=24, stride=4)
    covered = np.zeros((66, 101), int)
    for tile in grid:
        covered[tile.top : tile.bottom, tile.left : tile.right] += 1
    assert (covered == 1).all()


def test_sizes_must_fit_the_stride():
    with pytest.raises(InputError, match=r"tile_size.*4.*30"):
        TileGrid(100, 100, size=30, margin=24, stride=4)
    with pytest.raises(InputError, match=r"tile_margin.*4.*7"):
        TileGrid(100, 100, size=32, margin=7, stride=4)


def test_superpixels_are_refused(lively_network):
    with pytest.raises(InputError, match=r"superpixels\.json"):
        inference(lively_network, superpixels=True)


@pytest.mark.parametrize("settings", [{"mpp": 0}, {"mpp": "1"}, {"slide_mpp": -1.0}, {"tile_size": 100}])
def test_settings_that_cannot_be(lively_network, settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        inference(lively_network, **settings)
