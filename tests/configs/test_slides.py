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


"""Whole slides through the shipped overlay, as a user runs it."""

from __future__ import annotations

import csv
import json
import logging
import os
import re
import signal
import subprocess
import time
import traceback
from pathlib import Path

import highdicom as hd
import numpy as np
import openslide
import pydicom
import pytest
import shapely
import tifffile
import torch
from monai.bundle import ConfigParser, run
from PIL import Image
from scripts.images.originals import Originals
from scripts.networks import CDWSNet
from scripts.runtime.errors import input_error_of
from scripts.slides import segmentation as segmentation_module
from slide_formats import write_dicom
from slide_runs import SETTINGS, infer

RED, DARK = (230, 60, 120), (70, 20, 120)
# A wave of 40 pixels has no fine detail: its Laplacian's variance is (2 pi / 40)^2 = 0.025 of its gradient's square.
WAVES = (150 + 60 * np.sin(np.arange(600) * 2 * np.pi / 40))[None, :, None] * [1.0, 0.4, 0.9]


def stained(height: int, width: int) -> np.ndarray:
    """Grey, as white would be found: tissue in it, whose left half is red, which is found, with a dark hole."""
    picture = np.full((height, width, 3), 100, np.uint8)
    picture[20 : height - 20, 20 : width - 20] = DARK
    picture[30 : height - 30, 30 : width // 2] = RED
    picture[50:70, 50:80] = DARK
    return picture


def command(configs, checkpoint, slides, output: Path, **settings) -> list[str]:
    files = [str(configs / "inference.json"), str(configs / "slides.json")]
    options = {"config_file": files, "dataset_dir": slides, "ckpt_path": checkpoint, "output_dir": output}
    arguments = [part for name, value in (options | SETTINGS | settings).items() for part in (f"--{name}", str(value))]
    return ["-m", "monai.bundle", "run", "inferring", *arguments]


def rows(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "slides.csv").open() as file:
        return {row["slide"]: row for row in csv.DictReader(file)}


def test_all_results_of_a_slide(configs, red_detector, write_slide, tmp_path):
    picture = stained(301, 402)
    write_slide(tmp_path / "a.tif", picture, 0.5)
    out = infer(configs, red_detector, tmp_path / "a.tif", tmp_path / "out", mpp=0.5)
    truth = (picture == RED).all(axis=2)
    mask = tifffile.imread(out / "a_mask.ome.tif")
    np.testing.assert_array_equal(mask, np.where(truth, 255, 0))
    probability = tifffile.imread(out / "a_probability.ome.tif")
    assert (probability[100, 60], probability[60, 60], probability[5, 5]) == (255, 0, 0)
    assert openslide.OpenSlide(str(out / "a_mask.ome.tif")).dimensions == (402, 301)
    assert Image.open(out / "a_thumbnail.png").size == (402, 301)
    (feature,) = json.loads((out / "a.geojson").read_text())["features"]
    polygon = shapely.geometry.shape(feature["geometry"])
    assert polygon.is_valid
    y, x = np.mgrid[:301, :402] + 0.5
    np.testing.assert_array_equal(shapely.contains_xy(polygon, x, y), truth)
    row = rows(out)["a"]
    pixel = 0.25e-6  # mm2
    assert float(row["area_mm2"]) == pytest.approx(truth.sum() * pixel, rel=1e-5)  # six digits are written
    assert float(row["tissue_mm2"]) == pytest.approx(261 * 362 * pixel, rel=0.02)  # its edge may move by a pixel
    assert float(row["fraction_of_tissue"]) == pytest.approx(truth.sum() / (261 * 362), rel=0.02)
    assert float(row["probability"]) == pytest.approx((truth.sum() / (261 * 362)) ** 0.25, rel=0.01)
    assert not (out / ".unfinished").exists()
    measured = feature["properties"]["measurements"]
    assert measured["Marked area µm^2"] == pytest.approx(truth.sum() * 0.25)
    assert measured["Mean probability"] == measured["Highest probability"] == 1
    page = (out / "index.html").read_text()
    said = dict(re.findall(r'<data class="(\w+)[^"]*" value="([^"]*)"', page))
    assert said == {key: row[key] for key in said}
    assert list(said) == ["probability", "positive", "area_mm2", "fraction_of_tissue", "regions", "pen", "blur"]
    assert (row["pen"], row["blur"]) == ("0", "0")
    assert page.count('class="view"') == 1


def test_a_training_from_regions_of_slides(configs, red_detector, write_slide, tmp_path):
    """A red region beside a grey one, at a resolution, a picture among them; what is red is found where it is."""
    picture = np.full((160, 320, 3), 100, np.uint8)
    picture[:, :160] = RED
    write_slide(tmp_path / "a.tif", picture, 0.5)
    Image.fromarray(picture[:80, 160:240]).save(tmp_path / "grey.png")
    Image.fromarray(np.full((40, 80), 255, np.uint8)[:, ::2]).save(tmp_path / "mask.png")
    region = {"image": "a.tif", "mpp": 1.0}
    items = [
        region | {"region": [20, 20, 80, 80], "label": 1, "area": 0.9, "mask": "mask.png"},
        region | {"region": [180, 20, 80, 80], "label": 0},
        {"image": "grey.png", "label": 0},
        region | {"fields": 4, "field_size": 16, "label": 1},
    ]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": items, "validation": items[:3]}))
    settings = {"dataset_dir": str(tmp_path), "output_dir": str(tmp_path / "out"), "spatial_size": [32, 32]}
    settings |= {"pretrained": "random", "max_epochs": 1, "num_workers": 1, "cache_rate": 0.5, "logging_file": False}
    train = str(configs / "train.json")
    run("training", config_file=train, **settings)
    assert (tmp_path / "out" / "models" / "model.pt").is_file()
    evaluation = {"ckpt_path": str(red_detector), "fusion_weights": [1.0, 0.0, 0.0]} | settings
    run("evaluating", config_file=[train, str(configs / "evaluate.json")], **evaluation)
    with (tmp_path / "out" / "metrics_per_image.csv").open() as file:
        scores = {Path(row["image"]).name: row for row in csv.DictReader(file)}
    assert list(scores) == ["a_x20_y20_w80_h80_1000nm.tif", "a_x180_y20_w80_h80_1000nm.tif", "grey.png"]
    assert [float(row["area_predicted"]) for row in scores.values()] == [1, 0, 0]
    assert float(scores["a_x20_y20_w80_h80_1000nm.tif"]["f_measure"]) == 1
    run(
        "inferring",
        config_file=str(configs / "inference.json"),
        dataset_dir=str(tmp_path / "dataset.json"),
        ckpt_path=str(red_detector),
        output_dir=str(tmp_path / "out"),
        fusion_weights=[1.0, 0.0, 0.0],
        spatial_size=[40, 40],
        logging_file=False,
    )
    masks = {path.name: np.asarray(Image.open(path)) for path in (tmp_path / "out" / "predictions").glob("*_mask.png")}
    assert {name: (mask.shape, mask.mean()) for name, mask in masks.items() if "4x16" not in name} == {
        "a_x20_y20_w80_h80_1000nm_mask.png": ((40, 40), 255),
        "a_x180_y20_w80_h80_1000nm_mask.png": ((40, 40), 0),
        "grey_mask.png": ((80, 80), 0),
    }
    assert "a_4x16_1000nm_mask.png" in masks
    outlines = tmp_path / "out" / "predictions" / "a_x20_y20_w80_h80_1000nm_outlines.geojson"
    (feature,) = json.loads(outlines.read_text())["features"]
    assert shapely.geometry.shape(feature["geometry"]).bounds == (20, 20, 100, 100)  # pixels of the slide
    assert feature["properties"]["measurements"]["Marked area µm^2"] == 1600


def test_small_regions_have_no_polygon_and_small_holes_are_filled(configs, red_detector, write_slide, tmp_path):
    """The region has 241 x 171 pixels of 0.25 um2 less a hole of 20 x 30, which is 150 um2."""
    write_slide(tmp_path / "a.tif", stained(301, 402), 0.5)
    for smallest, rings in (({"min_hole_um2": 149}, [2]), ({"min_hole_um2": 151}, [1]), ({"min_region_um2": 1e5}, [])):
        out = infer(configs, red_detector, tmp_path / "a.tif", tmp_path / "out", mpp=0.5, **smallest)
        features = json.loads((out / "a.geojson").read_text())["features"]
        assert [len(feature["geometry"]["coordinates"]) for feature in features] == rings
        assert rows(out)["a"]["regions"] == str(len(rings))


def test_results_of_other_slides_stay_and_are_told_of(configs, red_detector, write_slide, tmp_path, caplog):
    for name in "ab":
        write_slide(tmp_path / f"{name}.tif", stained(100, 100), 1.0)
        out = infer(configs, red_detector, tmp_path / f"{name}.tif", tmp_path / "out")
    assert "has results of 1 other slides too, the first is a" in caplog.text
    assert (out / "a_mask.ome.tif").is_file()
    assert re.findall(r"<h2>(.*)</h2>", (out / "index.html").read_text()) == ["b"]


def test_polygons_are_in_pixels_of_level_0(configs, red_detector, write_slide, tmp_path):
    picture = np.kron(stained(200, 200), np.ones((4, 4, 1), np.uint8))
    write_slide(tmp_path / "a.tif", picture, 0.25, factors=(1, 4))
    out = infer(configs, red_detector, tmp_path / "a.tif", tmp_path / "out")
    (feature,) = json.loads((out / "a.geojson").read_text())["features"]
    assert shapely.geometry.shape(feature["geometry"]).bounds == (120, 120, 400, 680)


def test_resolution_missing(configs, red_detector, write_slide, tmp_path):
    write_slide(tmp_path / "a.tif", stained(200, 200), None)
    with pytest.raises(RuntimeError) as caught:
        infer(configs, red_detector, tmp_path / "a.tif", tmp_path / "out")
    remedy = f"of this slide alone (cdws infer {tmp_path / 'a.tif'} --overlay slides --slide_mpp ...)"
    assert remedy in str(input_error_of(caught.value))
    out = infer(configs, red_detector, tmp_path / "a.tif", tmp_path / "out", slide_mpp=2.0, mpp=2.0)
    assert rows(out)["a"]["width"] == "200"


def test_pen_is_left_out_and_told_of(configs, red_detector, write_slide, tmp_path, caplog):
    """A green line of 60 micrometres; 16 on either side of it go with it. The table, the page and the log say so."""
    picture = np.full((600, 800, 3), 240, np.uint8)
    picture[100:500, 100:700] = RED
    picture[:, 300:420] = (20, 110, 40)
    write_slide(tmp_path / "a.tif", picture, 0.5)
    with caplog.at_level("INFO"):
        out = infer(configs, red_detector, tmp_path / "a.tif", tmp_path / "out", mpp=0.5, tile_size=512)
    mask = tifffile.imread(out / "a_mask.ome.tif")
    assert (mask[110:490, 110:250] == 255).all()
    assert (mask[110:490, 470:690] == 255).all()
    assert not mask[:, 280:440].any()
    tissue = 400 * 600 + 200 * 120  # the line has a colour beyond the section too
    row = rows(out)["a"]
    assert float(row["pen"]) == pytest.approx((400 * 184 + 200 * 120) / tissue, rel=0.05)
    assert row["blur"] == "0"
    assert re.search(r"a: 4\d% of the slide is glass; left out of the tissue: 3\d\.\d% as pen", caplog.text)
    assert f'<data class="pen" value="{row["pen"]}"' in (out / "index.html").read_text()
    out = infer(configs, red_detector, tmp_path / "a.tif", tmp_path / "all", mpp=0.5, tile_size=512, leave_out=[])
    assert (rows(out)["a"]["pen"], rows(out)["a"]["blur"]) == ("", "")
    assert (tifffile.imread(out / "a_mask.ome.tif")[110:490, 110:290] == 255).all()


def test_a_slide_out_of_focus_has_no_probability(configs, red_detector, write_slide, tmp_path, caplog):
    write_slide(tmp_path / "a.tif", np.broadcast_to(WAVES[:, :300], (300, 300, 3)).astype(np.uint8), 1.0)
    out = infer(configs, red_detector, tmp_path / "a.tif", tmp_path / "out", tile_size=512)
    assert (rows(out)["a"]["probability"], rows(out)["a"]["blur"]) == ("", "1")
    assert f"All tissue of '{tmp_path / 'a.tif'}' is left out as blur: nothing is marked" in caplog.text


def test_what_can_be_left_out_is_said(configs, red_detector, write_slide, tmp_path):
    write_slide(tmp_path / "a.tif", stained(64, 64), 1.0)
    with pytest.raises(RuntimeError) as caught:
        infer(configs, red_detector, tmp_path / "a.tif", tmp_path / "out", leave_out=["dust"])
    assert "leave_out must be a list of pen and blur, or []; got ['dust']." in str(input_error_of(caught.value))
    assert not (tmp_path / "out").exists()


def test_tissue_may_be_given(configs, red_detector, write_slide, tmp_path):
    write_slide(tmp_path / "a.tif", stained(200, 200), 1.0)
    square = [[[30, 30], [60, 30], [60, 180], [30, 180], [30, 30]]]
    (tmp_path / "t.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": square}))
    out = infer(configs, red_detector, tmp_path / "a.tif", tmp_path / "out", tissue=str(tmp_path / "t.geojson"))
    assert float(rows(out)["a"]["tissue_mm2"]) == pytest.approx(30 * 150 / 1e6)
    assert float(rows(out)["a"]["area_mm2"]) == pytest.approx((30 * 140 - 10 * 20) / 1e6)  # without the hole


def test_default_resolution_is_the_model_s(configs, red_detector, write_slide, tmp_path):
    metadata = json.loads((configs / "metadata.json").read_text())
    model = metadata["network_data_format"]["inputs"]["image"]["mpp"]
    write_slide(tmp_path / "a.tif", stained(200, 200), model / 2)
    settings = {key: value for key, value in SETTINGS.items() if key != "mpp"}
    files = [str(configs / "inference.json"), str(configs / "slides.json")]
    paths = {"dataset_dir": str(tmp_path), "ckpt_path": str(red_detector), "output_dir": str(tmp_path / "out")}
    run("inferring", config_file=files, **paths, **settings)
    assert rows(tmp_path / "out" / "predictions")["a"]["width"] == "100"


@pytest.mark.parametrize(("originals", "mpp", "warnings"), [((256, 256, 1.0, 0.5), 1.0, 0), ((448, 448), 2.8, 1)])
def test_a_model_of_ones_own_sees_slides_as_its_training_images(configs, tmp_path, caplog, originals, mpp, warnings):
    """256 pixels of 0.5 are 128 of 1.0; of images that say nothing, 448 of the included models' 1.4 are 224 of 2.8."""
    size = 128 if len(originals) > 2 else 224
    network = CDWSNet(method="cdws").for_size([size, size])
    network.learns_from(Originals(*originals))
    torch.save(network.state_dict(), tmp_path / "mine.pt")
    parser = ConfigParser()
    parser.read_config([str(configs / f"{name}.json") for name in ("inference", "slides")])
    parser.update({"ckpt_path": str(tmp_path / "mine.pt")})
    with caplog.at_level(logging.WARNING):
        assert parser.get_parsed_content("mpp") == pytest.approx(mpp)
    assert caplog.text.count("--mpp") == warnings


@pytest.mark.parametrize(("model", "overlay", "mpp"), [("model", [], 2.8), ("area_ranked", ["recommended"], 1.4)])
def test_included_models_see_slides_as_they_saw_their_images(configs, model, overlay, mpp):
    """Images of 224 pixels at 1.4 um: one was trained at half of their size, the other at all of it."""
    parser = ConfigParser()
    parser.read_config([str(configs / f"{name}.json") for name in ("inference", *overlay, "slides")])
    parser["bundle_root"] = str(configs.parent)
    parser["ckpt_path"] = str(configs.parent / "models" / f"{model}.pt")
    assert parser.get_parsed_content("mpp") == pytest.approx(mpp)


def test_finished_slides_are_not_redone_unless_something_changed(configs, red_detector, write_slide, tmp_path):
    write_slide(tmp_path / "a.tif", stained(200, 200), 1.0)

    def stamp(**settings) -> int:
        out = infer(configs, red_detector, tmp_path / "a.tif", tmp_path / "out", **settings)
        return (out / "a.json").stat().st_mtime_ns

    first = stamp()
    assert stamp() == first
    changed = stamp(threshold=0.7)
    assert changed > first
    assert stamp(threshold=0.7, fusion_weights=[0.9, 0.1, 0.0]) > changed


@pytest.mark.parametrize("is_there", [False, True], ids=["deleted", "empty"])
@pytest.mark.parametrize("ending", [".geojson", "_mask.ome.tif", "_probability.ome.tif", "_thumbnail.png"])
def test_results_that_are_gone_are_made_again(configs, red_detector, write_slide, tmp_path, ending, is_there):
    write_slide(tmp_path / "a.tif", stained(100, 100), 1.0)
    out = infer(configs, red_detector, tmp_path / "a.tif", tmp_path / "out")
    before = (out / f"a{ending}").read_bytes()
    (out / f"a{ending}").unlink()
    if is_there:
        (out / f"a{ending}").touch()
    infer(configs, red_detector, tmp_path / "a.tif", tmp_path / "out")
    assert len((out / f"a{ending}").read_bytes()) == len(before)


def test_a_slide_that_states_another_resolution_is_warned_of(configs, red_detector, write_slide, tmp_path, caplog):
    """By more than 1 %: 2.018 and 1.982 are not that far from 2, 2.022 and 0.5 are."""
    stated = {"a": 2.018, "b": 1.982, "c": 2.022, "d": 0.5, "e": None}
    (tmp_path / "slides").mkdir()
    for name, mpp in stated.items():
        write_slide(tmp_path / "slides" / f"{name}.tif", stained(64, 64), mpp)
    out = infer(configs, red_detector, tmp_path / "slides", tmp_path / "out", slide_mpp=2.0, mpp=2.0)
    assert {row["width"] for row in rows(out).values()} == {"64"}
    warned = re.findall(
        r"(\w): states ([\d.]+) x [\d.]+ micrometres per pixel, and is mapped with --slide_mpp 2 ", caplog.text
    )
    assert warned == [("c", "2.022"), ("d", "0.5")]


STAYS = """
import runpy, time
from scripts.images.originals import Originals
from scripts.networks import CDWSNet
original, tiles = CDWSNet.maps, iter(range(40))
def maps(self, image):
    if next(tiles, None) is None:
        time.sleep(600)  # until it is killed
    return original(self, image)
CDWSNet.maps = maps
runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
"""


def test_a_killed_run_goes_on(configs, quick_python, write_slide, tissue_picture, lively_network, tmp_path):
    torch.save(lively_network.state_dict(), tmp_path / "model.pt")
    write_slide(tmp_path / "a.tif", tissue_picture(500, 500), 1.0)
    whole = infer(configs, tmp_path / "model.pt", tmp_path / "a.tif", tmp_path / "whole")
    arguments = command(configs, tmp_path / "model.pt", tmp_path / "a.tif", tmp_path / "out")
    process = subprocess.Popen(
        [quick_python, "-c", STAYS, *arguments[2:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(configs.parent)},
    )
    journal = tmp_path / "out" / "predictions" / ".unfinished" / "a" / "tiles.jsonl"
    while process.poll() is None and not (journal.is_file() and journal.read_text().count("\n") >= 5):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()  # until nobody writes
    before = journal.read_text().splitlines()
    assert 5 <= len(before) < 64
    assert not list((tmp_path / "out" / "predictions").glob("a*"))  # nothing has its name yet
    mapped = []
    original = CDWSNet.maps
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CDWSNet, "maps", lambda self, image: mapped.append(image) or original(self, image))
        out = infer(configs, tmp_path / "model.pt", tmp_path / "a.tif", tmp_path / "out")
    assert len(mapped) <= 64 - len(before) + 1  # the last line may have been cut off
    assert not list(out.glob(".*.part"))  # nor is there anything left of what the killed run was writing
    for name in ("a_probability.ome.tif", "a_mask.ome.tif"):
        np.testing.assert_array_equal(tifffile.imread(out / name), tifffile.imread(whole / name))
    assert (out / "slides.csv").read_text() == (whole / "slides.csv").read_text()


def test_a_failure_on_the_way_ends_the_run_and_leaves_only_what_is_gone_on_with(
    configs, red_detector, write_slide, tmp_path
):
    write_slide(tmp_path / "a.tif", stained(500, 500), 1.0)
    original, calls = CDWSNet.maps, iter(range(1000))

    def maps(self, image):
        if next(calls) == 20:
            raise MemoryError("the accelerator is full")
        return original(self, image)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CDWSNet, "maps", maps)
        with pytest.raises(RuntimeError) as caught:
            infer(configs, red_detector, tmp_path / "a.tif", tmp_path / "out")
    assert "the accelerator is full" in "".join(traceback.format_exception(caught.value))
    out = tmp_path / "out" / "predictions"
    assert [path.name for path in out.iterdir() if path.name != ".inferring.lock"] == [".unfinished"]
    assert next(calls) == 21


def test_a_truncated_slide_is_named_and_the_others_are_done(configs, quick_python, red_detector, write_slide, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (600, 600, 3), dtype=np.uint8)
    write_slide(folder / "a.tif", noise, 1.0)
    write_slide(folder / "b.tif", stained(200, 200), 1.0)
    content = (folder / "a.tif").read_bytes()
    (folder / "a.tif").write_bytes(content[: len(content) // 2])
    (folder / "notes.txt").write_text("no slide")
    arguments = command(configs, red_detector, folder, tmp_path / "out")
    done = subprocess.run([quick_python, *arguments], capture_output=True, text=True)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "a.tif" in done.stderr.split("error:")[-1]
    assert list(rows(tmp_path / "out" / "predictions")) == ["b"]


@pytest.mark.parametrize("given", ["..", "file"])
def test_nothing_that_others_have_among_the_predictions_is_removed(
    configs, red_detector, write_slide, tmp_path, monkeypatch, given
):
    """A folder that is given as '..', and a slide called '...svs', which is refused."""
    out = tmp_path / "out" / "predictions"
    (out / "sub").mkdir(parents=True)
    (out / ".unfinished").mkdir()
    mine = [out / "notes.txt", out / "sub" / "b.csv", out / ".unfinished" / "c.txt"]
    for path in mine:
        path.write_text("keep")
    if given == "file":
        write_slide(tmp_path / "...svs", stained(200, 200), 1.0)
        with pytest.raises(RuntimeError) as caught:
            infer(configs, red_detector, tmp_path / "...svs", tmp_path / "out")
        assert "rename it" in str(input_error_of(caught.value))
    else:
        (tmp_path / "case" / "inner").mkdir(parents=True)
        write_dicom(tmp_path / "case" / "level0.dcm", stained(200, 260), 0.5)
        monkeypatch.chdir(tmp_path / "case" / "inner")
        infer(configs, red_detector, "..", tmp_path / "out")
        assert list(rows(out)) == ["case"]
        assert (out / "case_mask.ome.tif").is_file()
    assert all(path.read_text() == "keep" for path in mine)


def test_a_file_that_is_no_result_is_not_replaced(configs, red_detector, write_slide, tmp_path):
    """An annotation, or anything else that has the name of a result, also where the predictions are put beside it."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in "abc":
        write_slide(folder / f"{name}.tif", stained(200, 200), 1.0)
    (folder / "a.geojson").write_text("mine")
    (folder / "b.json").write_text('{"mine": 1}')
    with pytest.raises(RuntimeError) as caught:
        infer(configs, red_detector, folder, tmp_path / "out", prediction_dir=str(folder))
    said = str(input_error_of(caught.value))
    assert f"'{folder / 'a.geojson'}' would be replaced" in said
    assert f"'{folder / 'b.json'}' would be replaced" in said
    assert (folder / "a.geojson").read_text() == "mine"
    assert (folder / "b.json").read_text() == '{"mine": 1}'
    with (folder / "slides.csv").open() as file:
        assert [row["slide"] for row in csv.DictReader(file)] == ["c"]
    before = (folder / "c.json").read_text()  # one's own results are replaced
    infer(configs, red_detector, folder / "c.tif", tmp_path / "out", prediction_dir=str(folder), threshold=0.7)
    assert (folder / "c.json").read_text() != before


def test_a_table_that_is_no_result_is_not_replaced(configs, red_detector, write_slide, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write_slide(folder / "a.tif", stained(100, 100), 1.0)
    (folder / "slides.csv").write_text("slide,patient\na,7\n")
    with pytest.raises(RuntimeError) as caught:
        infer(configs, red_detector, folder, tmp_path / "out", prediction_dir=str(folder))
    assert f"'{folder / 'slides.csv'}' would be replaced" in str(input_error_of(caught.value))
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == ["a.tif", "slides.csv"]
    (folder / "slides.csv").unlink()
    for _ in range(2):  # the second finds its own table and maps, and takes neither for a slide
        infer(configs, red_detector, folder, tmp_path / "out", prediction_dir=str(folder))
        assert list(rows(folder)) == ["a"]


@pytest.mark.parametrize("failure", ["vanishes", "is no file", "bug"])
def test_a_slide_that_fails_midway_costs_no_other(configs, red_detector, write_slide, tmp_path, failure):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in "abc":
        write_slide(folder / f"{name}.tif", stained(300, 300), 1.0)
    original = CDWSNet.maps
    calls = iter(range(10_000))

    def maps(self, image):
        if next(calls) == 3:  # of the first slide
            if failure == "bug":
                raise ValueError("zero-size array")
            (folder / "b.tif").unlink()
            if failure == "is no file":
                (folder / "b.tif").mkdir()
        return original(self, image)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CDWSNet, "maps", maps)
        with pytest.raises(RuntimeError) as caught:
            infer(configs, red_detector, folder, tmp_path / "out")
    if failure == "bug":  # keeps its traceback
        assert "ValueError: zero-size array" in "".join(traceback.format_exception(caught.value))
        assert list(rows(tmp_path / "out" / "predictions")) == ["b", "c"]
    else:
        assert str(folder / "b.tif") in str(input_error_of(caught.value))
        assert list(rows(tmp_path / "out" / "predictions")) == ["a", "c"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_map_that_is_not_finite_is_named(configs, red_detector, write_slide, tmp_path, value):
    for name in "ab":
        write_slide(tmp_path / f"{name}.tif", stained(200, 200), 1.0)
    original = CDWSNet.maps
    calls = iter(range(10_000))

    def maps(self, image):
        found = original(self, image)
        if next(calls) == 2:
            found[..., 30, 30] = value
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CDWSNet, "maps", maps)
        with pytest.raises(RuntimeError) as caught:
            infer(configs, red_detector, tmp_path, tmp_path / "out")
    assert f"The map of '{tmp_path / 'a.tif'}' has values that are not finite" in str(input_error_of(caught.value))
    assert list(rows(tmp_path / "out" / "predictions")) == ["b"]


def test_a_slide_without_tissue_has_no_probability(configs, red_detector, write_slide, tmp_path, caplog):
    folder = tmp_path / "in"
    folder.mkdir()
    write_slide(folder / "grey.tif", np.full((200, 200, 3), 128, np.uint8), 1.0)
    write_slide(folder / "red.tif", stained(200, 200), 1.0)
    out = infer(configs, red_detector, folder, tmp_path / "out")
    grey, red = rows(out).values()
    assert (grey["probability"], grey["fraction_of_tissue"], grey["tissue_mm2"], grey["area_mm2"]) == ("", "", "0", "0")
    assert float(red["probability"]) > 0.5
    assert f"No tissue was found on '{folder / 'grey.tif'}'" in caplog.text
    assert rows(infer(configs, red_detector, folder, tmp_path / "out")) == {"grey": grey, "red": red}


def test_torchrun_deals_slides_out(configs, quick_python, red_detector, write_slide, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(3):
        write_slide(folder / f"s{i}.tif", stained(150 + 20 * i, 200), 1.0)
    (folder / "broken.tif").write_bytes(b"nothing")  # one process fails, and the other must not be ended by that
    launcher = [quick_python, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    arguments = command(configs, red_detector, folder, tmp_path / "out")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode != 0
    assert "broken.tif" in done.stderr
    assert list(rows(tmp_path / "out" / "predictions")) == ["s0", "s1", "s2"]
    assert set(re.findall(r"(s\d): 100%", done.stderr)) == {"s0", "s1", "s2"}


def test_pictures_config_names_the_overlay(configs, red_detector, tmp_path):
    (tmp_path / "a.svs").write_bytes(b"a slide")
    for images in (tmp_path, tmp_path / "a.svs"):
        with pytest.raises(RuntimeError) as caught:
            run(
                "inferring",
                config_file=str(configs / "inference.json"),
                dataset_dir=str(images),
                ckpt_path=str(red_detector),
                output_dir=str(tmp_path / "out"),
                logging_file=False,
            )
        assert "slides.json" in str(input_error_of(caught.value))


def test_no_slide(configs, red_detector, tmp_path):
    for folder, word in ((tmp_path, "svs"), (tmp_path / "none", "none")):
        with pytest.raises(RuntimeError) as caught:
            infer(configs, red_detector, folder, tmp_path / "out")
        assert word in str(input_error_of(caught.value))


def test_a_dicom_slide_by_its_file(configs, red_detector, tmp_path):
    """By its folder, and by that folder's, see below."""
    write_dicom(tmp_path / "level0.dcm", stained(200, 260), 0.5)
    out = infer(configs, red_detector, tmp_path / "level0.dcm", tmp_path / "out", mpp=0.5)
    assert list(rows(out)) == ["level0"]
    truth = (stained(200, 260) == RED).all(axis=2)
    mask = tifffile.imread(out / "level0_mask.ome.tif") > 0
    assert (mask != truth).mean() < 0.01  # JPEG


def test_a_dicom_slide_gets_a_pyramid_of_dicom_segmentations(configs, red_detector, tmp_path, monkeypatch):
    """Of two levels, named in the order in which they aren't; on the pixels of the map, which lie on the slide."""
    folder = tmp_path / "in" / "case 7"
    folder.mkdir(parents=True)
    picture = np.kron(stained(200, 260), np.ones((2, 2, 1), np.uint8))
    write_dicom(folder / "b.dcm", picture, 0.25)
    write_dicom(folder / "a.dcm", picture[::4, ::4], 1.0, like=folder / "b.dcm")
    slide = pydicom.dcmread(folder / "b.dcm")
    out = infer(configs, red_detector, folder.parent, tmp_path / "out", mpp=0.5)
    mask = tifffile.imread(out / "case 7_mask.ome.tif") > 0
    assert list(rows(out)) == ["case 7"]
    assert (mask != (stained(200, 260) == RED).all(axis=2)).mean() < 0.01  # JPEG
    files = sorted((out / "case 7_seg").iterdir())
    assert [file.name for file in files] == ["1.dcm", "2.dcm", "3.dcm", "4.dcm"]  # 260 columns in tiles of 64
    found = [hd.seg.segread(file) for file in files]
    for k, segmentation in enumerate(found):
        np.testing.assert_array_equal(
            segmentation.get_total_pixel_matrix(combine_segments=True), mask[:: 2**k, :: 2**k]
        )
        measures = segmentation.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        np.testing.assert_allclose(measures.PixelSpacing, 0.5e-3 * 2**k)
        origin = segmentation.TotalPixelMatrixOriginSequence[0]
        assert (origin.XOffsetInSlideCoordinateSystem, origin.YOffsetInSlideCoordinateSystem) == (10, 20)
        assert segmentation.get_segment_description(1).SegmentLabel == "Cancer"
        assert segmentation.FrameOfReferenceUID == slide.FrameOfReferenceUID
        assert segmentation.StudyInstanceUID == slide.StudyInstanceUID
        (referred,) = segmentation.get_source_image_uids()
        assert referred[2] == slide.SOPInstanceUID
    assert len({segmentation.PyramidUID for segmentation in found}) == 1
    # what doesn't fit into memory is left to a coarser level, and what was written before goes
    monkeypatch.setattr(segmentation_module, "WHOLE", 130 * 100)
    out = infer(configs, red_detector, folder.parent, tmp_path / "out", mpp=0.5, class_name="Tumour")
    assert [file.name for file in sorted((out / "case 7_seg").iterdir())] == ["1.dcm", "2.dcm", "3.dcm"]
    (first, *_) = map(hd.seg.segread, sorted((out / "case 7_seg").iterdir()))
    np.testing.assert_array_equal(first.get_total_pixel_matrix(combine_segments=True), mask[::2, ::2])


def test_a_slide_that_no_segmentation_can_refer_to_has_all_other_results(configs, red_detector, tmp_path, caplog):
    folder = tmp_path / "in" / "case 7"
    folder.mkdir(parents=True)
    write_dicom(folder / "a.dcm", stained(200, 260), 0.5)
    slide = pydicom.dcmread(folder / "a.dcm")
    del slide.PatientID
    slide.save_as(folder / "a.dcm")
    out = infer(configs, red_detector, folder, tmp_path / "out", mpp=0.5)
    assert list(rows(out)) == ["case 7"]
    assert re.search(r"case 7: no DICOM segmentation: .*PatientID", caplog.text)


def test_maps_as_ome_zarr(configs, red_detector, write_slide, tmp_path):
    """The same pixels, level by level, also of a slide that was finished without them."""
    zarr = pytest.importorskip("zarr", reason="zarr, which ome_zarr needs, is not installed")
    write_slide(tmp_path / "a.tif", stained(301, 402), 0.5)
    infer(configs, red_detector, tmp_path / "a.tif", tmp_path / "out", mpp=0.5)
    finished = (tmp_path / "out" / "predictions" / "a.json").stat().st_mtime_ns
    out = infer(configs, red_detector, tmp_path / "a.tif", tmp_path / "out", mpp=0.5, ome_zarr=True)
    assert (out / "a.json").stat().st_mtime_ns == finished
    for kind in ("probability", "mask"):
        group = zarr.open_group(out / f"a_{kind}.ome.zarr", mode="r")
        (scales,) = group.attrs["multiscales"]
        assert [axis["name"] for axis in scales["axes"]] == ["y", "x"]
        with tifffile.TiffFile(out / f"a_{kind}.ome.tif") as file:
            levels = [level.asarray() for level in file.series[0].levels]
        assert len(levels) == len(scales["datasets"]) == 4
        for k, (level, dataset) in enumerate(zip(levels, scales["datasets"], strict=True)):
            np.testing.assert_array_equal(group[dataset["path"]][:], level)
            assert dataset["coordinateTransformations"] == [{"type": "scale", "scale": [0.5 * 2**k, 0.5 * 2**k]}]


def test_the_tissue_of_a_dicom_slide_is_called_as_the_slide(configs, red_detector, tmp_path):
    folder = tmp_path / "in" / "case 7"
    folder.mkdir(parents=True)
    write_dicom(folder / "level0.dcm", stained(200, 260), 0.5)
    tissue = np.zeros((200, 260), np.uint8)
    tissue[:, :80] = 255
    (tmp_path / "tissue").mkdir()
    Image.fromarray(tissue).save(tmp_path / "tissue" / "case 7.png")
    out = infer(configs, red_detector, folder, tmp_path / "out", mpp=0.5, tissue=str(tmp_path / "tissue"))
    mask = tifffile.imread(out / "case 7_mask.ome.tif") > 0
    truth = (stained(200, 260) == RED).all(axis=2) & (tissue > 0)
    assert truth.any()
    assert (mask != truth).mean() < 0.01  # JPEG
