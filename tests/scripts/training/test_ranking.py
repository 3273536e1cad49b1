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

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scripts.networks.map_network import MapNetwork
from scripts.runtime.errors import InputError
from scripts.training.ranking import RankingMapd
from scripts.training.record import describe
from torch import nn


class LeftColumn(MapNetwork):
    """The image's first channel times a weight in its left column, 0 elsewhere."""

    smallest_size = 1

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def maps(self, image: torch.Tensor) -> torch.Tensor:
        answer = torch.zeros_like(image[:, :1])
        answer[..., 0] = self.weight * image[:, :1, :, 0]
        return answer


@pytest.fixture
def checkpoints(tmp_path: Path) -> list[str]:
    """With weights 0.4 and 0.8."""
    paths = []
    for weight in (0.4, 0.8):
        network = LeftColumn()
        nn.init.constant_(network.weight, weight)
        paths.append(str(tmp_path / f"{weight}.pt"))
        torch.save(network.state_dict(), paths[-1])
    return paths


def rank(paths: list[str] | str, label: float = 1.0) -> torch.Tensor:
    item = {"image": torch.tensor([[[1.0, 0.5], [0.0, 0.25]]]), "label": torch.tensor([label, 0.5])}
    return RankingMapd("image", "ranking", LeftColumn(), paths)(item)["ranking"]


def test_maps_are_averaged_over_flips_and_networks(checkpoints: list[str]) -> None:
    """The left column of two of four flips is the right one: half of each pixel, times 0.4 and on average 0.6."""
    torch.testing.assert_close(rank(checkpoints[0]), torch.tensor([[[0.2, 0.1], [0.0, 0.05]]]))
    torch.testing.assert_close(rank(checkpoints), torch.tensor([[[0.3, 0.15], [0.0, 0.075]]]))


def test_a_negative_image_needs_no_ranking(checkpoints: list[str]) -> None:
    assert rank(checkpoints, label=0.0).tolist() == [[[0.0, 0.0], [0.0, 0.0]]]


def test_the_network_that_is_trained_is_another(checkpoints: list[str]) -> None:
    network = LeftColumn()
    RankingMapd("image", "ranking", network, checkpoints)
    assert network.weight.item() == 1
    assert not network.tta
    assert network.weight.requires_grad


def test_the_record_tells_other_weights(checkpoints: list[str]) -> None:
    """So that a training is not resumed with another ranking."""
    first, again, second = (
        describe(RankingMapd("image", "ranking", LeftColumn(), path)) for path in (*checkpoints[:1] * 2, checkpoints[1])
    )
    assert first == again
    assert first != second


@pytest.mark.parametrize(("paths", "message"), [([], "names no checkpoint"), (["none.pt"], "--ranked_by")])
def test_a_missing_checkpoint_is_named(paths: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RankingMapd("image", "ranking", LeftColumn(), paths)


def test_the_ranking_of_an_image_is_without_its_small_parts(checkpoints: list[str]) -> None:
    """Of two columns of 0.2, see above, one has a dark pixel that leaves an island of one of 36."""
    image = torch.ones(1, 12, 3)
    image[0, 1, 0] = 0.0
    item = {"image": image, "label": torch.tensor([1.0, 1.0])}
    kept = RankingMapd("image", "ranking", LeftColumn(), checkpoints[0], smallest=0.02)(item)["ranking"]
    cleaned = RankingMapd("image", "ranking", LeftColumn(), checkpoints[0], smallest=0.05)(item)["ranking"]
    columns = torch.tensor([[[0.2, 0.0, 0.2], [0.0, 0.0, 0.2], *[[0.2, 0.0, 0.2]] * 10]])
    torch.testing.assert_close(kept, columns, atol=1e-4, rtol=0)
    uncertain = item | {"label": torch.tensor([1.0, 0.1])}  # of a step: nothing is surely positive
    ranked = RankingMapd("image", "ranking", LeftColumn(), checkpoints[0], smallest=0.05)(uncertain)["ranking"]
    torch.testing.assert_close(ranked, columns, atol=1e-4, rtol=0)
    columns[0, 0, 0] = 0
    torch.testing.assert_close(cleaned, columns, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("label", "area", "step", "expected"),
    [
        (1.0, torch.nan, 0.1, 0.2),  # of 20 pixels three have 2 x 0.8 / 2, see above: 0.15
        (1.0, torch.nan, 0.25, 0.25),
        (1.0, 0.7, 0.1, 0.7),
        (0.0, torch.nan, 0.1, torch.nan),
    ],
)
def test_an_unknown_area_is_that_of_the_maps_mask(checkpoints, label, area, step, expected) -> None:
    image = torch.zeros(1, 4, 5)
    image[0, 0, 0] = image[0, 1, 0] = image[0, 2, 4] = 2
    given = torch.tensor([label, area])
    found = RankingMapd("image", "ranking", LeftColumn(), checkpoints[1], area_step=step)(
        {"image": image, "label": given}
    )
    torch.testing.assert_close(found["label"], torch.tensor([label, expected]), equal_nan=True)
    torch.testing.assert_close(given, torch.tensor([label, area]), equal_nan=True)  # the data set's stays


def test_an_unknown_area_is_a_step_at_least_and_counted_inside_the_image(checkpoints) -> None:
    ranker = RankingMapd("image", "ranking", LeftColumn(), checkpoints[1])
    item = {"image": torch.zeros(1, 4, 5), "label": torch.tensor([1.0, torch.nan])}
    assert ranker(item)["label"].tolist() == pytest.approx([1, 0.1])
    item["image"][0, 0, 0] = 2
    item["valid"] = torch.ones(1, 4, 5)
    item["valid"][..., 1:] = 0  # one of four pixels
    assert ranker(item)["label"].tolist() == pytest.approx([1, 0.3])


def test_a_smallest_part_that_is_no_fraction_is_refused(checkpoints: list[str]) -> None:
    with pytest.raises(InputError, match="smallest_part"):
        RankingMapd("image", "ranking", LeftColumn(), checkpoints, smallest=12)
