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

"""Training and evaluation through the shipped configs, on a user's odd collection of images."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow, run
from PIL import Image
from scripts.networks import CDWSNet
from scripts.runtime.errors import input_error_of


@pytest.fixture
def odd_images(tmp_path):
    """Data set of images of all kinds: tiny, long, grey, with alpha, 16 bit; areas for some, masks for none."""
    rng = np.random.default_rng(0)

    def picture(*shape, dtype=np.uint8):
        return Image.fromarray(rng.integers(0, np.iinfo(dtype).max, shape, dtype=dtype))

    picture(5, 5, 3).save(tmp_path / "tiny.png")
    picture(33, 500, 3).save(tmp_path / "long.jpg")
    picture(40, 30).save(tmp_path / "grey.bmp")
    picture(20, 60, 4).save(tmp_path / "alpha.png")
    picture(50, 50, dtype=np.uint16).save(tmp_path / "deep.tif")
    items = [
        {"image": "tiny.png", "label": 1, "area": 0.4},
        {"image": "long.jpg", "label": 1},
        {"image": "grey.bmp", "label": 0},
        {"image": "alpha.png", "label": 0, "area": None},
        {"image": "deep.tif", "label": 1, "area": 1.0},
    ]
    content = {"training": items, "validation": items[:3]}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    return tmp_path


def settings(folder) -> dict:
    return {
        "dataset_dir": str(folder),
        "output_dir": str(folder / "out"),
        "ckpt_dir": str(folder / "out"),
        "spatial_size": [16, 24],
        "pretrained": "random",
        "max_epochs": 2,
        "micro_batch_size": 2,
        "logging_file": False,
    }


def test_odd_images_train_without_masks_and_are_evaluated(configs, odd_images, caplog):
    with caplog.at_level(logging.INFO):
        run("training", config_file=str(configs / "train.json"), **settings(odd_images))
    assert "image-level validation loss (no masks used)" in caplog.text
    state = torch.load(odd_images / "out" / "model.pt", weights_only=True)
    assert all(torch.isfinite(value).all() for value in state.values())
    config = [str(configs / "train.json"), str(configs / "evaluate.json")]
    run("evaluating", config_file=config, **settings(odd_images))
    metrics = json.loads((odd_images / "out" / "metrics.json").read_text())
    assert 0 <= metrics["auc"] <= 1
    assert "f_pos" not in metrics  # nobody knows


def test_masks_asked_for_and_missing_is_an_error(configs, odd_images):
    with pytest.raises(RuntimeError) as caught:
        run("training", config_file=str(configs / "train.json"), select_by="masks", **settings(odd_images))
    assert "'image_labels'" in str(input_error_of(caught.value))


def test_default_is_one_step_of_adam_an_epoch_over_all_images(configs, odd_images):
    """Two epochs of full batches: Adam has counted two steps."""
    run("training", config_file=str(configs / "train.json"), **settings(odd_images))
    optimizer = torch.load(odd_images / "out" / "last.pt", weights_only=True)["optimizer"]
    assert {int(state["step"]) for state in optimizer["state"].values()} == {2}
    rates = [group["lr"] for group in optimizer["param_groups"]]
    assert rates == pytest.approx([1e-5, 1e-5, 1e-3])  # sides, fusion, trunk
    assert all(group["weight_decay"] == 5e-4 and group["betas"] == (0.9, 0.999) for group in optimizer["param_groups"])


@pytest.mark.parametrize("overlay", [None, "keep_aspect.json"])
def test_strokes_reach_the_loss_with_their_image(configs, odd_images, overlay):
    """The grey image is marked as negative all over: in the batch that is what belongs to it, and nothing of others."""
    Image.fromarray(np.ones((40, 30), np.uint8)).save(odd_images / "strokes.png")
    content = json.loads((odd_images / "dataset.json").read_text())
    content["training"][2]["strokes"] = "strokes.png"
    (odd_images / "dataset.json").write_text(json.dumps(content))
    files = [str(configs / name) for name in ("train.json", overlay) if name]
    workflow = ConfigWorkflow(files, workflow_type="train", logging_file=False)
    workflow.parser.update(settings(odd_images) | {"max_epochs": 1})
    workflow.initialize()
    trainer, given = workflow.parser.get_parsed_content("engine"), []
    cost = trainer.loss_function.forward
    trainer.loss_function.forward = lambda *maps, **others: given.append(others) or cost(*maps, **others)
    trainer.run()
    (of_tiny, of_long), (of_grey, of_alpha) = (batch["strokes"] for batch in given[:2])
    assert not torch.stack([of_tiny, of_long, of_alpha]).any()
    assert torch.equal(of_grey > 0, given[1]["valid"][0] > 0 if overlay else torch.ones(1, 16, 24) > 0)


def test_minibatch_overlay_steps_every_few_images(configs, odd_images):
    config = [str(configs / "train.json"), str(configs / "minibatch.json")]
    run("training", config_file=config, **settings(odd_images) | {"micro_batch_size": 4})
    optimizer = torch.load(odd_images / "out" / "last.pt", weights_only=True)["optimizer"]
    assert {int(state["step"]) for state in optimizer["state"].values()} == {4}  # 5 images, 2 epochs


def test_items_of_monai_label_train_as_they_come(configs, odd_images):
    """MONAI Label puts its own items in: a path of a mask under `label`, and nothing of our data set."""
    mask = np.zeros((5, 5), np.uint8)
    mask[:2] = 1
    Image.fromarray(mask).save(odd_images / "tiny_label.png")
    Image.fromarray(np.zeros((40, 30), np.uint8)).save(odd_images / "grey_label.png")
    items = [
        {"image": str(odd_images / f"{n}"), "label": str(odd_images / f"{n.split('.')[0]}_label.png")}
        for n in ("tiny.png", "grey.bmp")
    ]
    overrides = settings(odd_images) | {"dataset_dir": "none", "run_id": "run", "workflow_type": "train"}
    workflow = ConfigWorkflow(
        str(configs / "train.json"), **overrides, **{"train#dataset#data": items, "validate#dataset#data": items}
    )
    workflow.initialize()
    workflow.run()
    targets = [item["label"] for item in workflow.train_dataset]
    torch.testing.assert_close(targets[0], torch.tensor([1.0, 0.4]))
    assert targets[1][0] == 0


def test_pretrained_weights_are_where_training_starts(configs, odd_images, tmp_path):
    source = CDWSNet()
    torch.save(source.features.state_dict(prefix="features."), tmp_path / "vgg.pt")
    overrides = settings(odd_images) | {"pretrained": str(tmp_path / "vgg.pt"), "learning_rate": 0.0}
    run("training", config_file=str(configs / "train.json"), **overrides)
    trained = torch.load(odd_images / "out" / "last.pt", weights_only=True)["model"]
    for name, value in source.features.state_dict(prefix="features.").items():
        assert torch.equal(trained[name], value)


def test_interrupted_training_keeps_what_it_has(configs, odd_images):
    """A failure in the middle still leaves the last checkpoint."""
    overrides = settings(odd_images) | {"max_epochs": 50}
    workflow = ConfigWorkflow(str(configs / "train.json"), run_id="training", workflow_type="train", **overrides)
    workflow.initialize()
    trainer = workflow.trainer

    def fail(engine):
        raise KeyboardInterrupt

    trainer.add_event_handler(Events.EPOCH_COMPLETED(once=2), fail)
    with pytest.raises((KeyboardInterrupt, RuntimeError)):
        workflow.run()
    assert (odd_images / "out" / "last.pt").is_file()
    assert (odd_images / "out" / "model.pt").is_file()
