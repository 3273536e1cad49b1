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

"""Inference through its shipped config: pictures of all kinds, the right way round, at their own size."""

from __future__ import annotations

import csv
import json
import re
from zlib import crc32

import numpy as np
import pytest
import torch
from monai.bundle import run
from PIL import Image
from scripts.data.listing import ImageList
from scripts.images.originals import Originals
from scripts.networks import CDWSNet
from scripts.runtime.errors import InputError, input_error_of

RED, BLACK = (255, 0, 0), (0, 0, 0)


def infer(configs, red_detector, folder, output, **overrides):
    run(
        "inferring",
        config_file=str(configs / "inference.json"),
        ckpt_path=str(red_detector),
        output_dir=str(output),
        fusion_weights=[1.0, 0.0, 0.0],
        logging_file=False,
        **({"dataset_dir": str(folder)} | overrides),
    )
    return output / "predictions"


def red_corner(width: int, height: int) -> np.ndarray:
    """Black picture (H, W, 3) whose upper right quarter is red: no flip or transposition leaves it as it is."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, width // 2 :] = RED
    return picture


@pytest.mark.parametrize(
    ("width", "height", "suffix"), [(60, 40, "png"), (40, 60, "tif"), (33, 120, "bmp"), (64, 64, "png")]
)
def test_mask_lies_where_the_picture_says(configs, red_detector, tmp_path, width, height, suffix):
    (tmp_path / "in").mkdir()
    Image.fromarray(red_corner(width, height)).save(tmp_path / "in" / f"a.{suffix}")
    out = infer(configs, red_detector, tmp_path / "in", tmp_path / "out", spatial_size=[width, height])
    mask = np.asarray(Image.open(out / "a_mask.png"))
    np.testing.assert_array_equal(mask, np.where(red_corner(width, height)[..., 0] > 0, 255, 0))


def test_resized_mask_covers_the_same_part_of_the_picture(configs, red_detector, tmp_path):
    (tmp_path / "in").mkdir()
    Image.fromarray(red_corner(200, 100)).save(tmp_path / "in" / "a.png")
    out = infer(configs, red_detector, tmp_path / "in", tmp_path / "out", spatial_size=[64, 64])
    mask = np.asarray(Image.open(out / "a_mask.png")) > 0
    truth = red_corner(200, 100)[..., 0] > 0
    assert mask.shape == (100, 200)
    assert (mask != truth).mean() < 0.02  # the edge alone, 150 pixels long, may move by a network pixel


def test_probability_map_has_16_bits_and_the_heat_map_its_colours(configs, red_detector, tmp_path):
    (tmp_path / "in").mkdir()
    Image.fromarray(red_corner(40, 40)).save(tmp_path / "in" / "a.png")
    out = infer(configs, red_detector, tmp_path / "in", tmp_path / "out", spatial_size=[40, 40])
    values, heat = (np.asarray(Image.open(out / f"a_{name}.png")) for name in ("probability", "heat"))
    # black gives sigmoid(-20); red, normalised to (1 - 0.485) / 0.229, saturates
    assert values.dtype == np.uint16
    assert (values[5, 35], values[35, 5]) == (65535, 0)
    # Matplotlib's inferno ends at #fcffa4 and begins at #000004
    assert heat.dtype == np.uint8
    assert (tuple(heat[5, 35]), tuple(heat[35, 5])) == ((0xFC, 0xFF, 0xA4), (0, 0, 4))


def test_the_page_says_what_the_table_says(configs, red_detector, tmp_path, caplog):
    """Yes and no are by what evaluation has chosen: of an image a quarter of which is 1 the mean of p^4 is 1/4."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    found = {
        "image_threshold": 0.6,
        "spatial_size": [40, 40],
        "model_checksum": f"{crc32(red_detector.read_bytes()):08x}",
    }
    (tmp_path / "out" / "metrics.json").write_text(json.dumps(found))
    Image.fromarray(red_corner(40, 40)).save(tmp_path / "in" / "a <i>.png")
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "in" / "b.png")
    caplog.set_level("INFO")
    out = infer(configs, red_detector, tmp_path / "in", tmp_path / "out", spatial_size=[40, 40])
    assert caplog.text.count(f"Written: {out}; look at {out / 'index.html'}.") == 1
    with (out / "predictions.csv").open() as file:
        table = list(csv.DictReader(file))
    assert float(table[0]["probability"]) == pytest.approx(0.25**0.25, abs=1e-4)
    assert [row["positive"] for row in table] == ["yes", "no"]
    assert [float(row["area_fraction"]) for row in table] == [0.25, 0]
    page = (out / "index.html").read_text()
    said = re.findall(r'<data class="(\w+)[^"]*" value="([^"]*)"', page)
    assert said == [(key, row[key]) for row in table for key in ("probability", "positive", "area_fraction")]
    assert re.findall(r"<h2>(.*)</h2>", page) == ["a &lt;i&gt;.png", "b.png"]
    assert "0.6 or more (chosen by the evaluation in" in page
    assert f"Model: {red_detector} of 20" in page


def test_results_of_subfolders_have_names_of_their_own(configs, red_detector, tmp_path):
    for name, picture in (("red", red_corner(40, 40)), ("black", np.zeros((40, 40, 3), np.uint8))):
        (tmp_path / "in" / name).mkdir(parents=True)
        Image.fromarray(picture).save(tmp_path / "in" / name / "1.png")
    out = infer(configs, red_detector, tmp_path / "in", tmp_path / "out", spatial_size=[40, 40])
    kinds = ("heat.png", "mask.png", "outlines.geojson", "overlay.png", "probability.png")
    files = {f"{name}_1_{kind}" for name in ("red", "black") for kind in kinds}
    assert {path.name for path in out.glob("[!.]*")} == files | {"index.html", "predictions.csv"}
    assert [np.asarray(Image.open(out / f"{name}_1_mask.png")).mean() / 255 for name in ("red", "black")] == [0.25, 0]
    with (out / "predictions.csv").open() as file:
        assert [row["image"] for row in csv.DictReader(file)] == [
            str(tmp_path / "in" / name / "1.png") for name in ("black", "red")
        ]
    assert set(re.findall(r'<a href="(.*?)"', (out / "index.html").read_text())) == files
    assert re.findall(r"<h2>(.*)</h2>", (out / "index.html").read_text()) == ["black_1.png", "red_1.png"]


def test_a_model_is_used_at_the_size_it_was_trained_at_unless_one_is_typed(
    configs, red_detector, tmp_path, monkeypatch
):
    """Whatever the overlays say; and a threshold is not used at a size that it was not found at."""
    network = CDWSNet().for_size([32, 32])
    network.load_state_dict(torch.load(red_detector, weights_only=True) | {"_extra_state": network.get_extra_state()})
    torch.save(network.state_dict(), tmp_path / "model.pt")
    (tmp_path / "mine.json").write_text('{"spatial_size": [16, 16]}')
    for name, picture in (("a", red_corner(40, 40)), ("b", np.zeros((40, 40, 3), np.uint8))):
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    items = [{"image": f"{name}.png", "label": label} for name, label in (("a", 1), ("b", 0))]
    (tmp_path / "dataset.json").write_text(json.dumps({"validation": items}))

    def start(name, chain, *typed, **overrides):
        monkeypatch.setattr("sys.argv", ["monai/bundle/__main__.py", "run", name, *typed])
        files = [str(tmp_path / file if file == "mine.json" else configs / file) for file in chain]
        paths = {"dataset_dir": str(tmp_path), "ckpt_path": str(tmp_path / "model.pt"), "output_dir": str(tmp_path)}
        run(name, config_file=files, logging_file=False, **paths | overrides)
        metrics, page = tmp_path / "metrics.json", tmp_path / "predictions" / "index.html"
        return json.loads(metrics.read_text()) if name == "evaluating" else page.read_text()

    evaluate, infer = ("train.json", "mine.json", "evaluate.json"), ("inference.json", "mine.json")
    typed, options = ("--spatial_size", "[24,24]"), {"spatial_size": [24, 24]}
    assert start("evaluating", evaluate)["spatial_size"] == [32, 32]
    page = start("inferring", infer)
    assert "chosen by the evaluation in" in page
    assert "trained at 32 x 32 pixels" in page
    assert "resized to [32, 32], not [24, 24]: evaluate again" in start("inferring", infer, *typed, **options)
    other = str(red_detector)  # somebody wants it, and another evaluation would be of the first one again
    page = start("inferring", infer, "--ckpt_path", other, ckpt_path=other)
    assert f"(the evaluation in {tmp_path / 'metrics.json'} is of another model than --ckpt_path)" in page
    assert start("evaluating", evaluate, *typed, **options)["spatial_size"] == [24, 24]


def test_overlay_is_the_picture_with_the_outline(configs, red_detector, tmp_path):
    (tmp_path / "in").mkdir()
    Image.fromarray(red_corner(40, 40)).save(tmp_path / "in" / "a.png")
    out = infer(configs, red_detector, tmp_path / "in", tmp_path / "out", spatial_size=[40, 40])
    overlay = np.asarray(Image.open(out / "a_overlay.png"))
    assert overlay.shape == (40, 40, 3)
    assert tuple(overlay[30, 10]) == BLACK
    assert tuple(overlay[10, 30]) == RED
    assert overlay[10, 20, 1] > 200  # green at the region's left edge


def test_a_list_of_mixed_pictures(configs, red_detector, tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (5, 5), dtype=np.uint8)).save(tmp_path / "tiny.png")
    Image.fromarray(rng.integers(0, 65535, (33, 500), dtype=np.uint16)).save(tmp_path / "wide.tif")
    Image.fromarray(rng.integers(0, 255, (50, 40, 4), dtype=np.uint8)).save(tmp_path / "alpha.PNG")
    Image.fromarray(rng.integers(0, 255, (30, 31, 3), dtype=np.uint8)).save(tmp_path / "photo.jpg")
    names = ["tiny.png", "wide.tif", "alpha.PNG", "photo.jpg"]
    paths = [str(tmp_path / name) for name in names]
    out = infer(configs, red_detector, tmp_path, tmp_path / "out", images=paths, spatial_size=[32, 32])
    for path in paths:
        stem = path.rsplit("/", 1)[1].rsplit(".", 1)[0]
        assert Image.open(out / f"{stem}_mask.png").size == Image.open(path).size


def test_errors_name_what_is_wrong(configs, red_detector, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(RuntimeError) as caught:
        infer(configs, red_detector, tmp_path / "in", tmp_path / "out")
    assert "broken.png" in str(input_error_of(caught.value))
    assert not (tmp_path / "out").exists()
    Image.fromarray(red_corner(40, 40)).save(tmp_path / "in" / "broken.png")
    with pytest.raises(RuntimeError) as caught:
        infer(configs, tmp_path / "none.pt", tmp_path / "in", tmp_path / "out")
    error = input_error_of(caught.value)
    assert isinstance(error, InputError)
    assert "none.pt" in str(error)
    assert "--ckpt_path" in str(error)


def test_a_broken_picture_is_named_at_the_end_and_the_others_are_done(configs, red_detector, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a_broken.png").write_bytes(b"not a picture")
    Image.fromarray(red_corner(40, 40)).save(tmp_path / "in" / "b.png")
    with pytest.raises(RuntimeError) as caught:
        infer(configs, red_detector, tmp_path / "in", tmp_path / "out", spatial_size=[40, 40])
    error = input_error_of(caught.value)
    assert isinstance(error, InputError)
    assert "a_broken.png" in str(error)
    written = {path.name for path in (tmp_path / "out" / "predictions").iterdir() if not path.name.startswith(".")}
    assert written == {
        *(f"b_{kind}.png" for kind in ("mask", "probability", "heat", "overlay")),
        "b_outlines.geojson",
        "predictions.csv",
        "index.html",
    }


def test_images_that_change_during_inference_are_named_and_the_others_are_done(
    configs, red_detector, tmp_path, monkeypatch
):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a deleted", "b cut", "c $x", "d", "n" * 240):
        Image.fromarray(red_corner(40, 40)).save(folder / f"{name}.png")
    checked = ImageList.log_left_out

    def then_change(found, where):
        checked(found, where)
        (folder / "a deleted.png").unlink()
        (folder / "b cut.png").write_bytes((folder / "b cut.png").read_bytes()[:60])

    monkeypatch.setattr(ImageList, "log_left_out", then_change)
    with pytest.raises(RuntimeError) as caught:
        infer(configs, red_detector, folder, tmp_path / "out", spatial_size=[40, 40])
    headline, *problems = str(input_error_of(caught.value)).split("\n  - ")
    assert headline.startswith("3 problems in the images; all others are done")
    assert "bytes too long for its results" in problems[0]
    assert [problem.split("'")[1] for problem in problems[1:]] == [
        str(folder / name) for name in ("a deleted.png", "b cut.png")
    ]
    with (tmp_path / "out" / "predictions" / "predictions.csv").open() as file:
        assert [row["image"] for row in csv.DictReader(file)] == [str(folder / name) for name in ("c $x.png", "d.png")]
    masks = {path.name for path in (tmp_path / "out" / "predictions").glob("*_mask.png")}
    assert masks == {"c $x_mask.png", "d_mask.png"}


def test_a_map_that_is_not_finite_is_no_mask(configs, red_detector, tmp_path):
    """The weights are finite, and too large for what is between them."""
    state = torch.load(red_detector, weights_only=True)
    state["features.0.weight"] *= 1e38
    state["features.2.weight"] *= -1e38
    state["features.2.weight"][1:] = 1e38  # infinities of both signs meet
    for name in ("features.5.weight", "sides.0.weight"):
        state[name][:] = 1.0
        state[name][:, ::2] = -1.0
    torch.save(state, tmp_path / "large.pt")
    (tmp_path / "in").mkdir()
    Image.fromarray(np.full((40, 40, 3), 255, np.uint8)).save(tmp_path / "in" / "a.png")
    with pytest.raises(RuntimeError) as caught:
        infer(configs, tmp_path / "large.pt", tmp_path / "in", tmp_path / "out", spatial_size=[40, 40])
    assert "a.png' has values that are not finite" in str(caught.value.__cause__ or input_error_of(caught.value))
    assert not list((tmp_path / "out" / "predictions").glob("*_mask.png"))


def test_a_full_disk_leaves_no_half_of_a_picture(configs, red_detector, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    Image.fromarray(red_corner(40, 40)).save(tmp_path / "in" / "a.png")
    save = Image.Image.save

    def full(picture, path, **kwargs):
        save(picture, path, **kwargs)
        with open(path, "r+b") as file:
            file.truncate(50)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(RuntimeError):
        infer(configs, red_detector, tmp_path / "in", tmp_path / "out", spatial_size=[40, 40])
    assert not list((tmp_path / "out" / "predictions").glob("*.png"))
    assert not list((tmp_path / "out" / "predictions").glob(".*.png"))


def test_a_picture_much_larger_than_the_training_images_is_mapped_at_their_scale(configs, red_detector, tmp_path):
    """Red squares of 8 pixels vanish when 512 x 256 pixels become 32 x 32, and don't at the scale of 64 x 64."""
    state = torch.load(red_detector, weights_only=True)
    network = CDWSNet().for_size([32, 32])
    network.learns_from(Originals(64, 64))
    torch.save(state | {"_extra_state": network.get_extra_state()}, tmp_path / "model.pt")
    picture = np.zeros((256, 512, 3), np.uint8)
    for top, left in ((40, 100), (200, 480)):
        picture[top : top + 8, left : left + 8] = RED
    (tmp_path / "in").mkdir()
    Image.fromarray(picture).save(tmp_path / "in" / "large.png", dpi=(50_800, 50_800))  # 0.5 micrometres
    Image.fromarray(red_corner(64, 64)).save(tmp_path / "in" / "usual.png")
    settings = {"spatial_size": [32, 32], "min_region_um2": 1}
    out = infer(configs, tmp_path / "model.pt", tmp_path / "in", tmp_path / "out", **settings)
    mask = np.asarray(Image.open(out / "large_mask.png")) > 0
    assert mask.shape == (256, 512)
    assert mask[42:46, 102:106].all()
    assert mask[202:206, 482:486].all()
    assert mask.sum() < 3 * 64
    regions = json.loads((out / "large_outlines.geojson").read_text())["features"]
    areas = [region["properties"]["measurements"]["Marked area \N{MICRO SIGN}m^2"] for region in regions]
    assert sum(areas) == pytest.approx(mask.sum() * 0.25, rel=1e-3)
    (usual,) = json.loads((out / "usual_outlines.geojson").read_text())["features"]
    assert usual["properties"]["measurements"]["Marked area px^2"] == 32 * 32
    assert usual["properties"]["classification"]["name"] == "Cancer"
    assert "large_outlines.geojson" in (out / "index.html").read_text()

    squeezed = infer(configs, tmp_path / "model.pt", tmp_path / "in", tmp_path / "two", **settings, tiled=False)
    assert not (np.asarray(Image.open(squeezed / "large_mask.png")) > 0).any()
    infer(configs, tmp_path / "model.pt", tmp_path / "in", tmp_path / "out", **settings, geojson=False)
    assert not list(out.glob("*.geojson"))
