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

"""What MONAI and the model zoo require of a bundle."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, ckpt_export, verify_metadata, verify_net_in_out
from PIL import Image

SCHEMA = Path(__file__).parent / "metadata_schema.json"
OFFLINE = {"pretrained": "random"}


def test_metadata_has_the_required_keys(configs):
    verify_metadata(meta_file=str(configs / "metadata.json"), filepath=str(SCHEMA))


def test_a_metadata_key_that_is_missing_is_noticed(configs, tmp_path):
    metadata = json.loads((configs / "metadata.json").read_text())
    del metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match="channel_def"):
        verify_metadata(meta_file=str(tmp_path / "metadata.json"), filepath=str(SCHEMA))


def test_changelog_has_an_entry_for_the_version(configs):
    metadata = json.loads((configs / "metadata.json").read_text())
    assert metadata["version"] in metadata["changelog"]


@pytest.mark.parametrize("config", ["train", "inference"])
@pytest.mark.parametrize("n", [1, 9])
def test_network_fits_the_metadata(configs, config, n):
    overrides = OFFLINE if config == "train" else {}
    verify_net_in_out(
        "network_def",
        meta_file=str(configs / "metadata.json"),
        config_file=str(configs / f"{config}.json"),
        n=n,
        **overrides,
    )


def test_value_range_of_the_input_is_that_of_normalised_pictures(configs):
    parser = ConfigParser()
    parser.read_config(str(configs / "inference.json"))
    low, high = json.loads((configs / "metadata.json").read_text())["network_data_format"]["inputs"]["image"][
        "value_range"
    ]
    for mean, std in zip(parser["image_mean"], parser["image_std"], strict=True):
        assert low <= (0 - mean) / std < (1 - mean) / std <= high


@pytest.mark.parametrize(("config", "kind"), [("train", "train"), ("inference", "infer")])
def test_workflow_properties(configs, config, kind, demo_run):
    overrides = {"dataset_dir": str(demo_run / "data"), **OFFLINE} if config == "train" else {}
    if config == "inference":
        overrides = {"dataset_dir": str(demo_run / "data" / "images"), "ckpt_dir": str(demo_run / "models")}
    workflow = ConfigWorkflow(str(configs / f"{config}.json"), workflow_type=kind, logging_file=False, **overrides)
    workflow.initialize()
    assert workflow.check_properties() == []
    assert workflow.network_def is not None


def test_torchscript_export_gives_the_same_maps(configs, demo_run, tmp_path):
    checkpoint = demo_run / "models" / "model.pt"
    ckpt_export(
        "network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(checkpoint),
        meta_file=str(configs / "metadata.json"),
        config_file=str(configs / "inference.json"),
    )
    parser = ConfigParser()
    parser.read_config(str(configs / "inference.json"))
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(checkpoint, weights_only=True))
    exported = torch.jit.load(tmp_path / "model.ts")
    for size in [(4, 4), (33, 50)]:
        image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(exported(image), network(image))


def test_inference_has_the_network_and_settings_of_training(configs):
    train, inference = (json.loads((configs / f"{name}.json").read_text()) for name in ("train", "inference"))
    definition = {k: v for k, v in train["network_def"].items() if k != "pretrained"}
    assert inference["network_def"] == definition
    shared = set(train) & set(inference) - {"_desc_", "dataset_dir", "network_def", "pretrained", "run"}
    assert {
        "spatial_size",
        "resize",
        "normalize",
        "fusion_weights",
        "threshold",
        "tta",
        "min_part",
        "pool",
        "image_mean",
        "image_std",
    } <= shared
    assert train["spatial_size"] == inference["spatial_size"]["default"]  # of a checkpoint that doesn't say
    assert inference["load_image"].pop("picture") == "picture"  # which is drawn on
    # training validates without flips: four times as quick
    assert inference["network"].replace(".averaging_flips(@tta)", "") == train["network"]
    assert json.loads((configs / "evaluate.json").read_text())["network"] == inference["network"]
    for key in shared - {"claim", "initialize", "spatial_size", "network"}:
        assert train[key] == inference[key], key
    assert inference["at_scale"]["resize"] == "@resize"
    transforms = ["@resize" if name == "@at_scale" else name for name in inference["preprocessing"]["transforms"]]
    assert transforms == train["load_transforms"][1:]


def test_the_training_reads_from_top_to_bottom(configs):
    """In a screen or three: no step by its number, no lambda, and a condition for the device alone."""
    text = (configs / "train.json").read_text()
    assert len(text.encode()) <= 11_000
    assert re.findall(r"[#%]\w*#\d", text) == []
    assert "lambda" not in text
    assert [line for line in text.splitlines() if " if " in line and '"_desc_"' not in line] == [
        line for line in text.splitlines() if line.startswith('    "device"')
    ]


def config_files(configs):
    return sorted(path for path in configs.glob("*.json"))


def test_configs_are_formatted_as_the_model_zoo_wants(configs):
    for path in config_files(configs):
        text = path.read_text()
        assert "\t" not in text
        depths = {len(line) - len(line.lstrip(" ")) for line in text.splitlines()}
        assert all(depth % 4 == 0 for depth in depths), path.name


NEW_KEYS = {
    "check": {"check", "checking"},
    "demo": {"demo_dir"},
    "evaluate": {"split", "ckpt_path", "calibrate", "evaluating", "evaluator", "handlers", "left_out"},
    "keep_aspect": {"longest"},
    "dcan": {"contour", "momentum"},
    "recommended": {"encoder", "encoder_learning_rate", "paste", "steps", "unsure", "warm_up"},
    "demo_recommended": {"steps"},
    "recommended_supervised": {"paste"},
    "next_round": {"paste", "ranked_by", "smallest_part", "warm_up"},
    **{name: {"momentum"} for name in ("fcn32s", "fcn16s", "fcn8s")},
    "multi_gpu_train": {"finalize"},
    "multi_gpu_evaluate": {"finalize", "calibrate"},
    "slides": {"mpp", "slide_mpp", "tissue", "tile_size", "tile_margin", "class_name", "class_colour", "slides"}
    | {"leave_out", "loader", "min_region_um2", "min_hole_um2", "ome_zarr"},
    "slices": {"neighbours", "positive_labels", "intensity", "slice_axis", "segment_label", "unsure", "paste"},
    "mri": {"percentiles", "intensity"},
    "ct": {"window", "intensity"},
    "study_evaluation": {"map"},
    "inference_trt": {"trt_args"},
    "export": {"export_dir", "export_as", "mpp", "loader", "exporter", "exporting"}
    | {"export_file", "file_loader", "network_file", "exporting_file"},
    "mil_boosting": {"patch_size", "patch_stride", "negative_patches", "bags"},
}


def test_overlays_override_what_exists(configs):
    """MONAI's parser accepts a misspelt key silently."""
    known = {key for name in ("train", "inference") for key in json.loads((configs / f"{name}.json").read_text())}
    overlays = [p for p in config_files(configs) if p.stem not in ("train", "inference", "metadata")]
    assert len(overlays) >= 10
    for path in overlays:
        keys = {key.split("#")[0].removeprefix("+") for key in json.loads(path.read_text())}
        assert keys <= known | NEW_KEYS.get(path.stem, set()), path.stem


def test_runs_from_another_folder(configs, demo_run, tmp_path):
    """A newcomer's shell: a process of its own, in a folder that has nothing to do with the bundle."""
    image = next((demo_run / "data" / "images").glob("*.png"))
    command = [sys.executable, "-m", "monai.bundle", "run", "inferring"]
    options = {
        "--config_file": f"['{configs}/inference.json','{configs}/demo.json']",
        "--dataset_dir": str(image),
        "--ckpt_dir": str(demo_run / "models"),
        "--spatial_size": "[32,32]",
    }
    arguments = [part for pair in options.items() for part in pair]
    done = subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, text=True, env=clean_environment())
    assert done.returncode == 0, done.stderr
    mask = tmp_path / "runs" / "demo" / "predictions" / f"{image.stem}_mask.png"
    assert Image.open(mask).size == Image.open(image).size


def test_bad_input_ends_in_one_sentence_and_a_failure(configs, quick_python, tmp_path):
    command = [quick_python, "-m", "monai.bundle", "run", "training", "--config_file", str(configs / "train.json")]
    arguments = ["--dataset_dir", "nowhere", "--output_dir", "out"]
    done = subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, text=True, env=clean_environment())
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "nowhere" in last
    assert "--dataset_dir" in last


def clean_environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
