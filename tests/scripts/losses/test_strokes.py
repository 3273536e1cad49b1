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

"""What strokes cost, worked out by hand; in the losses beside what they cost without."""

from __future__ import annotations

import math

import pytest
import torch
from scripts.losses.area_ranking import AreaRankedLoss, area_ranked_labels
from scripts.losses.cdws import CDWSLoss
from scripts.losses.pooling import Pooling
from scripts.losses.strokes import stroke_loss
from scripts.runtime.errors import InputError

RANKING = [0.9, 0.4, 0.7, 0.1]
P = [0.8, 0.6, 0.5, 0.2]
NAN = float("nan")


def image(values: list[float]) -> torch.Tensor:
    """(1, 1, 2, 2)."""
    return torch.tensor(values).view(1, 1, 2, 2)


def strokes(signs: str) -> torch.Tensor:
    """(1, 1, 2, 2) of four signs: + positive, - negative, anything else unknown."""
    return torch.tensor([{"+": 2, "-": 1}.get(sign, 0) for sign in signs], dtype=torch.uint8).view(1, 1, 2, 2)


def ranked(epoch: int = 2, **options: float) -> AreaRankedLoss:
    loss = AreaRankedLoss(area_step=0.25, warm_up=1, reduction="none", **options)
    loss.set_epoch(epoch)
    return loss


def test_the_mean_over_the_pixels_under_strokes() -> None:
    expected = -(math.log(0.8) + math.log(1 - 0.6)) / 2
    assert stroke_loss(image(P), strokes("+-..")).tolist() == [[pytest.approx(expected, rel=1e-6)]]
    assert stroke_loss(image(P), strokes("....")).tolist() == [[0]]


def test_each_map_and_image_has_its_own() -> None:
    maps = torch.cat([image(P), image([0.5] * 4)], dim=1).repeat(2, 1, 1, 1)
    found = stroke_loss(maps, torch.cat([strokes("+..."), strokes("...-")]))
    assert found.flatten().tolist() == pytest.approx([-math.log(0.8), math.log(2), -math.log(0.8), math.log(2)])


def test_what_was_not_seen_and_what_is_no_number_costs_nothing() -> None:
    p = image([0.8, NAN, 0.5, 0.2]).requires_grad_()
    seen = torch.tensor([True, True, True, False]).view(1, 1, 2, 2)
    cost = stroke_loss(p, strokes("+..-"), seen)
    cost.sum().backward()
    assert cost.item() == pytest.approx(-math.log(0.8))
    assert p.grad.flatten().tolist() == [pytest.approx(-1 / 0.8), 0, 0, 0]


@pytest.mark.parametrize(
    ("painted", "area", "step", "expected"),
    [
        ("....", 0.5, 0.25, "+-?-"),  # one surely, two at most, as without strokes
        ("...+", 0.5, 0.25, "?--+"),  # the one that is sure; the second may be the best of the others
        ("-...", 0.5, 0.25, "-?+-"),  # the best are others
        (".+++", 0.5, 0.25, "-+++"),  # more than the budget: nothing is left of it
        ("-...", 1.0, 0.25, "-+++"),
        ("-...", 1.0, 0.01, "-+++"),  # all four surely, says the area
        ("+-..", 0.25, 0.5, "+---"),  # less than a step: one at most
        (".-..", 0.0, 0.25, "----"),  # a negative image
    ],
)
def test_the_budget_counts_what_is_painted(painted: str, area: float, step: float, expected: str) -> None:
    labels, known = area_ranked_labels(image(RANKING), torch.tensor([area]), step, strokes=strokes(painted))
    pairs = zip(labels.flatten(), known.flatten(), strict=True)
    assert "".join("?" if not k else "+" if label else "-" for label, k in pairs) == expected


def test_padding_is_outside_of_the_budget() -> None:
    """Of three pixels, one surely and two at most: the painted one, and perhaps the best of the other two."""
    valid = image([0, 1, 1, 1])
    labels, known = area_ranked_labels(image(RANKING), torch.tensor([2 / 3]), 1 / 3, valid, strokes("...+"))
    assert labels.flatten().tolist() == [0, 0, 0, 1]
    assert known.flatten().tolist() == [False, True, False, True]


def test_a_ranked_positive() -> None:
    """Labels are +-?-: the second pixel, which the teacher ranks third, has its label from the stroke."""
    labels = -(math.log(0.8) + math.log(0.4) + math.log(0.8)) / 3
    outside = 5 * (0.525 - 0.5) ** 2
    for weight in (1.0, 3.0):
        cost = ranked(stroke_weight=weight)(
            image(P), torch.tensor([[1, 0.5]]), ranking=image(RANKING), strokes=strokes(".-..")
        )
        assert cost.item() == pytest.approx(labels + outside - weight * math.log(0.4), rel=1e-5)


@pytest.mark.parametrize("target", [(1, 0.5), (1, NAN), (0, NAN)])
def test_before_there_is_a_ranking_it_is_added(target: tuple[float, float]) -> None:
    targets, loss = torch.tensor([target]), ranked(epoch=1)
    without = loss(image(P), targets).item()
    cost = loss(image(P), targets, strokes=strokes(".--.")).item()
    assert cost == pytest.approx(without - (math.log(0.4) + math.log(0.5)) / 2, rel=1e-5)


def test_in_a_batch_only_the_painted_image_changes() -> None:
    targets = torch.tensor([[1, 0.5], [1, 0.5]])
    for given in ({}, {"ranking": image(RANKING).repeat(2, 1, 1, 1)}):
        maps = image(P).repeat(2, 1, 1, 1)
        without = ranked()(maps, targets, **given)
        cost = ranked()(maps, targets, strokes=torch.cat([strokes("...."), strokes("..+.")]), **given)
        assert cost[0] == without[0]
        assert cost[1] > without[1] + 0.5


def test_strokes_of_the_papers_loss_are_added_to_each_map() -> None:
    maps = torch.tensor([[[[0.9, 0.1]], [[0.7, 0.4]]]])
    target, painted = torch.tensor([[1.0, 0.5]]), torch.tensor([[[[0, 2]]]])
    loss = CDWSLoss([0.0], 0.0, pool=Pooling("max"), stroke_weight=0.5, reduction="none")
    mil = -math.log(0.9) - math.log(0.7)
    assert loss(maps, target).item() == pytest.approx(mil)
    assert loss(maps, target, strokes=painted).item() == pytest.approx(mil - 0.5 * (math.log(0.1) + math.log(0.4)))
    assert loss.terms(maps, target, strokes=painted)["strokes"].shape == (1, 2)


def test_a_painted_superpixel_has_its_mean() -> None:
    maps, target = torch.tensor([[[[0.9, 0.1]]]]), torch.tensor([[1.0, NAN]])
    loss = CDWSLoss([], pool=Pooling("max"))
    given = {"superpixels": torch.zeros(1, 1, 1, 2, dtype=torch.int), "strokes": torch.tensor([[[[0, 2]]]])}
    assert loss(maps, target, **given).item() == pytest.approx(2 * math.log(2))


@pytest.mark.parametrize("loss", [AreaRankedLoss, CDWSLoss])
def test_options_and_shapes_out_of_range(loss: type) -> None:
    with pytest.raises(InputError, match="stroke_weight"):
        loss(stroke_weight=-1)
    maps = torch.full((1, 4, 2, 2), 0.5)
    with pytest.raises(ValueError, match="strokes"):
        loss()(maps, torch.tensor([[1, 0.5]]), strokes=torch.ones(1, 1, 4, 4))
