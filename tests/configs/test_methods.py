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

"""The paper's methods and their instances: each overlay trains, evaluates and infers, and knows its own checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, run
from PIL import Image
from scripts.data.superpixels import Superpixels
from scripts.runtime.errors import InputError, input_error_of

METHODS = ("baseline", "baseline_ac", "dws", "cdws")
RUNS = [*((method, "pixels") for method in METHODS), ("dws", "superpixels")]
MAPS = {"baseline": 1, "baseline_ac": 1, "dws": 4, "cdws": 4}


class Study:
    """Runs of the bundle on one tiny data set, with the overlays of a method."""

    def __init__(self, configs: Path, data: Path, folder: Path) -> None:
        self.configs, self.data, self.folder = configs, data, folder

    def options(self, name: str, overlays: list[str], **changes: Any) -> dict[str, Any]:
        return {
            "config_file": [str(self.configs / f"{overlay}.json") for overlay in overlays],
            "dataset_dir": str(self.data),
            "output_dir": str(self.folder / name),
            "ckpt_dir": str(self.folder / name / "models"),
            "superpixel_cache": str(self.folder / "superpixels"),
            "spatial_size": [32, 32],
            "logging_file": False,
            **changes,
        }

    def train(self, name: str, *overlays: str, **changes: Any) -> Path:
        """Folder of the run."""
        settings = {"pretrained": "random", "max_epochs": 1, "batch_size": 2, "micro_batch_size": 2, **changes}
        run("training", **self.options(name, ["train", *overlays], **settings))
        return self.folder / name

    def evaluate(self, name: str, *overlays: str, **changes: Any) -> dict[str, Any]:
        run("evaluating", **self.options(name, ["train", *overlays, "evaluate"], **changes))
        return json.loads((self.folder / name / "metrics.json").read_text())

    def infer(self, name: str, *overlays: str, **changes: Any) -> Path:
        """Folder of the predictions."""
        changes = {"images": str(self.data / "images"), **changes}
        run("inferring", **self.options(name, ["inference", *overlays], **changes))
        return self.folder / name / "predictions"


@pytest.fixture(scope="module")
def study(configs, demo_run, tmp_path_factory) -> Study:
    return Study(configs, demo_run / "data", tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def runs(study) -> dict[tuple[str, str], Path]:
    """A trained run of each method with pixels, and of one with superpixels."""
    return {
        (method, instances): study.train(f"{method}_{instances}", *overlays(method, instances))
        for method, instances in RUNS
    }


# What a tiny run of a comparison needs beside its overlay; FCN's 4096 channels are half a gigabyte a checkpoint.
COMPARED = {
    "fcn8s": {"network_def#head_channels": 16},
    "unet": {"network_def#features": [4, 4, 4, 4, 4, 4]},
    "dcan": {},
    "vgg_supervised": {},
    "cam": {},
    "recommended": {"encoder": "resnet10t", "max_epochs": 2},  # one of warm-up, one of ranked labels
    "mil_boosting": {"patch_size": 16, "max_epochs": 2},
}


@pytest.mark.parametrize("method", COMPARED)
def test_each_comparison_trains_evaluates_and_infers(study, method) -> None:
    changes = {"spatial_size": [40, 40], **COMPARED[method]}  # not the files' size
    study.train(method, method, **changes)
    metrics = study.evaluate(method, method, **changes)
    assert metrics["images"] == 4
    assert 0 <= metrics["f_pos"] <= 1
    predictions = study.infer(method, method, **changes)
    for image in (study.data / "images").iterdir():
        assert Image.open(predictions / f"{image.stem}_mask.png").size == Image.open(image).size


@pytest.mark.parametrize("stride", [16, 32])
def test_the_other_fcns_differ_from_fcn_8s_in_their_stride_alone(configs, stride) -> None:
    other, eight = (json.loads((configs / f"fcn{n}s.json").read_text()) for n in (stride, 8))
    assert other.pop("_desc_") == eight.pop("_desc_").replace("8s", f"{stride}s")
    assert (other.pop("method"), other["network_def"].pop("stride")) == (f"fcn{stride}s", stride)
    assert (eight.pop("method"), eight["network_def"].pop("stride")) == ("fcn8s", 8)
    assert other == eight


def test_a_next_round_follows_the_ranking_of_the_first(study) -> None:
    changes = {"spatial_size": [40, 40], "encoder": "resnet10t", "max_epochs": 1, "seed": 1}
    first = study.train("first_round", "recommended", **changes)
    ranked_by = [str(first / "models" / "model.pt")]
    second = study.train("next_round", "recommended", "next_round", ranked_by=ranked_by, **changes)
    alone = study.train("second_alone", "recommended", **changes)
    weights = [torch.load(folder / "models" / "last.pt", weights_only=True) for folder in (first, second, alone)]
    weights = [w["model"]["lateral.0.weight"] for w in weights]
    torch.testing.assert_close(weights[0], weights[2], rtol=0, atol=0)  # by its seed
    assert not torch.equal(weights[1], weights[2])
    assert study.evaluate("next_round", "recommended", "next_round", ranked_by=ranked_by, **changes)["images"] == 4


def test_dcan_takes_its_contour_branch(study) -> None:
    study.train("contour", "dcan", contour=True)
    assert study.evaluate("contour", "dcan", contour=True)["images"] == 4


def test_pixel_labels_need_masks(study, tmp_path) -> None:
    content = json.loads((study.data / "dataset.json").read_text())
    for items in (content["training"], content["validation"], content["test"]):
        for item in items:
            item["image"] = str(study.data / item["image"])
            if "mask" in item:
                item["mask"] = str(study.data / item["mask"])
    positive = next(item for item in content["training"] if item["label"] == 1)
    del positive["mask"]
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises((RuntimeError, InputError)) as caught:
        study.train("no_mask", "vgg_supervised", dataset_dir=str(tmp_path), allow_outside=True)
    error = str(input_error_of(caught.value))
    assert "1 problem" in error
    assert f"'{positive['image']}': has no mask, which this method learns from" in error


def overlays(method: str, instances: str) -> list[str]:
    return [method, "superpixels"] if instances == "superpixels" else [method]


@pytest.mark.parametrize(("method", "instances"), RUNS)
def test_each_method_evaluates_and_infers_its_checkpoint(study, runs, method, instances) -> None:
    name = runs[method, instances].name
    metrics = study.evaluate(name, *overlays(method, instances))
    assert metrics["images"] == 4
    assert 0 <= metrics["f_pos"] <= 1
    predictions = study.infer(name, *overlays(method, instances))
    assert len(list(predictions.glob("*_mask.png"))) == len(list((study.data / "images").iterdir()))


def settings(configs: Path, *names: str, **changes: Any) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(configs / f"{name}.json") for name in names])
    parser.update({"pretrained": "random", "spatial_size": [32, 32], **changes})
    return parser


@pytest.mark.parametrize("method", METHODS)
def test_a_method_has_the_papers_maps_and_terms(configs, method) -> None:
    """Baselines: the third side alone. Area constraints with weights 10 (fusion or only map), 2.5, 5, 10."""
    parser = settings(configs, "train", method)
    network = parser.get_parsed_content("network_def").train()
    maps = network(torch.zeros(1, 3, 32, 32))
    assert maps.shape == (1, MAPS[method], 32, 32)
    assert network.sides[-1].in_channels == 256
    # every map is 0.5, the area 0.1: an excess of 0.4 in each
    terms = parser.get_parsed_content("loss").terms(maps, torch.tensor([[1.0, 0.1]]))
    weights = [10.0, 2.5, 5.0, 10.0][: MAPS[method]] if method in ("baseline_ac", "cdws") else [0.0] * MAPS[method]
    assert terms["area"][0].tolist() == pytest.approx([w * 0.16 for w in weights])
    assert terms["mil"][0].tolist() == pytest.approx([np.log(2)] * MAPS[method])


@pytest.mark.parametrize("read_as", [("dws", "pixels"), ("baseline_ac", "pixels"), ("cdws", "superpixels")])
@pytest.mark.parametrize("config", ["evaluate", "inference"])
def test_a_checkpoint_is_refused_under_another_method(study, runs, config, read_as) -> None:
    ckpt = str(runs["cdws", "pixels"] / "models" / "model.pt")
    start = study.evaluate if config == "evaluate" else study.infer
    with pytest.raises((RuntimeError, InputError)) as caught:
        start("refused", *overlays(*read_as), ckpt_path=ckpt)
    error = input_error_of(caught.value)
    assert isinstance(error, InputError)
    method, instances = read_as
    assert f"'{ckpt}' can't be used here" in str(error)
    name = f"{method} with superpixels" if instances == "superpixels" else method
    assert f"trained as 'cdws', but the settings are those of '{name}'" in str(error)


def test_masks_are_made_of_whole_superpixels(study, red_detector) -> None:
    predictions = study.infer("whole", "superpixels", n_segments=20, ckpt_path=str(red_detector))
    image = sorted((study.data / "images").iterdir())[0]
    picture = np.asarray(Image.open(image)).transpose(2, 1, 0) / 255  # MONAI's (C, W, H)
    superpixels = Superpixels(20)(picture.astype(np.float32))[0].numpy().T  # files have the network's size here
    probability = np.asarray(Image.open(predictions / f"{image.stem}_probability.png"))
    mask = np.asarray(Image.open(predictions / f"{image.stem}_mask.png"))
    for label in np.unique(superpixels):
        assert np.ptp(probability[superpixels == label]) <= 1  # of 65535: rounding
        assert np.ptp(mask[superpixels == label]) == 0
    assert len(np.unique(superpixels)) == 20
    assert len(np.unique(probability)) > 10


def test_superpixels_are_kept_across_runs(study, runs, monkeypatch) -> None:
    def no_slic(*_: object, **__: object) -> None:
        raise AssertionError("superpixels were computed again")

    monkeypatch.setattr("scripts.data.superpixels.slic", no_slic)
    study.train("again", "dws", "superpixels")
    with pytest.raises(RuntimeError, match="SeededDataset"):  # where they are computed
        study.train("other", "dws", "superpixels", n_segments=7)


@pytest.mark.parametrize(
    ("settings", "extra"),
    [  # what each makes of every kind of instance, the tests of the losses see
        ({"constraint": "two_sided", "pooling": "top_fraction"}, ("superpixels",)),
        ({"constraint": "log_barrier", "pooling": "mean"}, ("keep_aspect",)),
        ({"penalty": "relative", "pooling": "max"}, ("keep_aspect", "superpixels")),
        ({"pooling": "log_sum_exp"}, ()),
    ],
)
def test_each_constraint_and_pooling_trains(study, settings, extra) -> None:
    run_dir = study.train("option", *extra, **settings)
    weights = torch.load(run_dir / "models" / "last.pt", weights_only=True)["model"]
    assert all(w.isfinite().all() for w in weights.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"constraint": "barrier"}, "constraint must be one of one_sided, .*got 'barrier'"),
        ({"penalty": "square"}, "penalty must be one of absolute, relative, got 'square'"),
        ({"pooling": "gm"}, "pooling must be one of generalized_mean, .*got 'gm'"),
        ({"top_fraction": 0}, "top_fraction must be a number above 0; got 0"),
        ({"top_fraction": 1.5}, "top_fraction must be above 0 and up to 1, got 1.5"),
        ({"stages": 6}, "stages must be a whole number from 1 to 5; got 6"),
        ({"stages": 2}, "fusion_weights must be a list of 2 numbers, one for each of the stages"),
        ({"stages": 2, "fusion_weights": [0.5, 0.5]}, "expected 1 or 4 maps .*, got 3; .* one of side_area_weights"),
        (
            {"stages": 5, "fusion_weights": [0.2] * 5, "spatial_size": [8, 8]},
            "spatial_size must be height and width, two integers of 16 or more",
        ),
        ({"superpixels": "false"}, "superpixels must be True or False; got 'false'"),
        ({"deep_supervision": "no"}, "deep_supervision must be True or False; got 'no'"),
        ({"area_constraint": "false"}, "area_constraint must be True or False; got 'false'"),
        ({"r": "abc"}, "r must be a number above 0; got 'abc'"),
        ({"area_step": 0}, "area_step must be a number above 0; got 0"),
        ({"barrier#growth": 0}, "barrier#growth must be a number above 0; got 0"),
        ({"superpixels": True, "n_segments": 0}, "n_segments must be 'auto' or a whole number of at least 1"),
    ],
)
def test_impossible_settings_are_named(study, changes, message) -> None:
    with pytest.raises((RuntimeError, InputError)) as caught:
        study.train("impossible", **changes)
    error = input_error_of(caught.value)
    assert error is not None
    with pytest.raises(type(error), match=message):
        raise error


def test_the_barrier_gets_sharper_from_epoch_to_epoch(study, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr("scripts.losses.constraints.AreaConstraint.set_sharpness", lambda self, t: seen.append(t))
    monkeypatch.setattr("scripts.losses.constraints.AreaConstraint.sharpness", 5.0, raising=False)
    study.train(
        "barrier", constraint="log_barrier", max_epochs=4, barrier={"start": 2.0, "growth": 1.5, "maximum": 4.0}
    )
    assert seen[0] == 2.0  # when made
    assert seen[1:] == pytest.approx([2.0, 3.0, 4.0, 4.0])


def test_other_numbers_of_stages_are_settings(study) -> None:
    changes = {"stages": 2, "fusion_weights": [0.4, 0.6], "side_area_weights": [5.0, 10.0]}
    study.train("two", **changes)
    del changes["side_area_weights"]
    assert study.evaluate("two", **changes)["images"] == 4


@pytest.mark.parametrize("order", [("five_stages", "log_barrier"), ("log_barrier", "five_stages")])
def test_the_order_of_overlays_does_not_matter(configs, order) -> None:
    loss = settings(configs, "train", *order).get_parsed_content("loss")
    assert loss.constraint.kind == "log_barrier"
    assert loss.area_weights == pytest.approx([0.2, 0.05, 0.1, 0.2, 0.2, 0.2])


def test_a_size_that_is_no_square_trains_and_infers(study, red_detector) -> None:
    study.train("oblong", "superpixels", spatial_size=[32, 48], max_epochs=3)  # turns would need a square
    predictions = study.infer("oblong", spatial_size=[32, 48], ckpt_path=str(red_detector))
    assert len(list(predictions.glob("*_mask.png"))) == 14


@pytest.mark.parametrize(
    ("shape", "extra"),
    [((30, 100), ()), ((30, 100), ("superpixels",)), ((90, 40), ("superpixels",)), ((64, 64), ()), ((20, 26), ())],
)
def test_padding_keeps_out_of_the_mask(study, red_detector, tmp_path, shape, extra) -> None:
    """Half of a dark picture is red: at its edge SLIC has no reason to stop, and the padding is as dark."""
    height, width = shape
    picture = np.zeros((height, width, 3), np.uint8)
    truth = np.zeros(shape, bool)
    truth[:, width // 2 :] = True
    picture[truth] = (255, 0, 0)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    changes = {"images": str(tmp_path), "ckpt_path": str(red_detector), "n_segments": 40}
    predictions = study.infer("padded", "keep_aspect", *extra, **changes)
    mask = np.asarray(Image.open(predictions / "picture_mask.png")) > 0
    assert mask.shape == shape
    border = max(2, max(shape) // 32 * 2)  # two pixels of the network's
    wrong = np.argwhere(mask != truth)
    assert (abs(wrong[:, 1] - width // 2) <= border).all()


def test_five_stages_train_and_evaluate(study) -> None:
    study.train("five", "five_stages", "dws")
    weights = torch.load(study.folder / "five" / "models" / "last.pt", weights_only=True)["model"]
    assert weights["sides.4.weight"].shape == (1, 512, 1, 1)
    assert study.evaluate("five", "five_stages", "dws")["images"] == 4
