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

"""Area-ranked labels of four pixels, and what they cost, worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from scripts.losses.area_ranking import AreaRankedLoss, area_ranked_labels, proportion_loss
from scripts.losses.cdws import mil_loss
from scripts.runtime.errors import InputError

RANKING = [0.9, 0.4, 0.7, 0.1]
NAN = float("nan")


def image(values: list[float]) -> torch.Tensor:
    """(1, 1, 2, 2)."""
    return torch.tensor(values).view(1, 1, 2, 2)


@pytest.mark.parametrize(
    ("ranking", "area", "step", "expected"),
    [
        (RANKING, 0.5, 0.25, "+-?-"),  # one surely, two at most
        (RANKING, 0.5, 0.5, "?-?-"),
        (RANKING, 1.0, 0.25, "+++?"),
        (RANKING, 1.0, 1.0, "+??-"),  # a step: 0 to 4, less a quarter of it at both ends
        (RANKING, 0.25, 0.5, "?---"),  # less than a step
        (RANKING, 0.0, 0.25, "----"),  # a negative image
        ([0.5, 0.5, 0.5, 0.1], 0.5, 0.25, "???-"),  # the budget's end divides equals
        ([0.9, 0.5, 0.5, 0.1], 0.75, 0.5, "+??-"),
        ([0.9, 0.5, 0.5, 0.1], 0.25, 0.25, "?---"),
        ([0.3] * 4, 0.5, 0.25, "????"),
        ([0.3] * 4, 0.0, 0.25, "----"),
    ],
)
def test_four_pixels(ranking: list[float], area: float, step: float, expected: str) -> None:
    labels, known = area_ranked_labels(image(ranking), torch.tensor([area]), step)
    signs = [
        "?" if not k else "+" if label else "-" for label, k in zip(labels.flatten(), known.flatten(), strict=True)
    ]
    assert "".join(signs) == expected


@pytest.mark.parametrize(
    ("area", "unsure", "expected"),
    [
        (0.8, 1.0, "++++????--"),  # between 0.4 and 0.8
        (0.8, 0.5, "+++++??---"),  # 0.5 and 0.7
        (0.8, 0.0, "++++++----"),  # 0.6
        (0.4, 0.5, "+??-------"),  # of 0 to 0.4, 0.1 and 0.3: a step or less, and yet a pixel is positive
        (0.4, 1.0, "+??-------"),
        (0.2, 1.0, "??--------"),  # 0.05 and 0.15, to even
        (0.5, 1.0, "+????-----"),  # above a step
        (0.2, 0.0, "+---------"),
        (0.0, 0.5, "----------"),
    ],
)
def test_a_part_of_the_interval_may_have_labels(area: float, unsure: float, expected: str) -> None:
    ranking = torch.linspace(0.95, 0.05, 10).view(1, 1, 2, 5)
    labels, known = area_ranked_labels(ranking, torch.tensor([area]), 0.4, unsure=unsure)
    signs = ["?" if not k else "+" if v else "-" for v, k in zip(labels.flatten(), known.flatten(), strict=True)]
    assert "".join(signs) == expected


def test_padding_is_neither_ranked_nor_labelled() -> None:
    """Of the three pixels left, a half of 0.67 rounds to two at most, and a third is one surely."""
    valid = image([0, 1, 1, 1])
    labels, known = area_ranked_labels(image(RANKING), torch.tensor([2 / 3]), 1 / 3, valid)
    assert labels.flatten().tolist() == [0, 0, 1, 0]
    assert known.flatten().tolist() == [False, False, True, True]


def test_each_image_has_its_own_budget() -> None:
    both = torch.cat([image(RANKING), image([0.2, 0.4, 0.6, 0.8])])
    labels, _ = area_ranked_labels(both, torch.tensor([0.5, 1.0]), 0.25)
    assert labels.flatten(1).tolist() == [[1, 0, 0, 0], [0, 1, 1, 1]]


P = [0.8, 0.6, 0.5, 0.2]  # of mean 0.525


def loss(target: tuple[float, float], epoch: int = 2, **given: torch.Tensor) -> float:
    ranked = AreaRankedLoss(area_step=0.25, warm_up=1)
    ranked.set_epoch(epoch)
    return float(ranked(image(P), torch.tensor([target]), **given))


def test_a_ranked_positive() -> None:
    pixels = -(math.log(0.8) + math.log(0.4) + math.log(0.8)) / 3  # the third has no label
    outside = 5 * (0.525 - 0.5) ** 2
    assert loss((1, 0.5), ranking=image(RANKING)) == pytest.approx(pixels + outside, rel=1e-5)


def test_a_ranked_positive_whose_interval_has_labels() -> None:
    """Between 0.25 and 0.5 the middle is 0.375: of four pixels the first and, rounded to even, the second."""
    ranked = AreaRankedLoss(area_step=0.25, unsure=0.0)
    ranked.set_epoch(2)
    pixels = -(math.log(0.8) + math.log(0.5) + math.log(0.4) + math.log(0.8)) / 4
    found = ranked(image(P), torch.tensor([(1, 0.5)]), ranking=image(RANKING))
    assert float(found) == pytest.approx(pixels + 5 * (0.525 - 0.5) ** 2, rel=1e-5)


def test_a_positive_without_ranking_costs_the_divergence_of_its_mean() -> None:
    q, v = 0.5 - 0.125, 0.525
    assert loss((1, 0.5)) == pytest.approx(q * math.log(q / v) + (1 - q) * math.log((1 - q) / (1 - v)), rel=1e-5)
    assert loss((1, 0.65)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("given", [{}, {"ranking": image(RANKING)}])
def test_a_negative_costs_every_pixel(given: dict) -> None:
    expected = -sum(math.log(1 - p) for p in P) / 4
    assert loss((0, NAN), **given) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("given", [{}, {"ranking": image(RANKING)}])
def test_an_unknown_area_leaves_the_label(given: dict) -> None:
    expected = mil_loss(image(P), torch.tensor([1.0]))
    assert loss((1, NAN), **given) == pytest.approx(float(expected), rel=1e-5)


def test_the_two_losses_of_a_mixed_batch_are_those_of_its_images() -> None:
    targets = torch.tensor([[1, 0.5], [0, NAN], [1, NAN], [1, 1.0]])
    ranked = AreaRankedLoss(area_step=0.25, reduction="none")
    ranked.set_epoch(2)
    together = ranked(image(P).expand(4, -1, -1, -1), targets, ranking=image(RANKING).expand(4, -1, -1, -1))
    alone = [loss(tuple(target.tolist()), ranking=image(RANKING)) for target in targets]
    assert together.tolist() == pytest.approx(alone, rel=1e-6)


def test_only_positive_images_are_ranked() -> None:
    """The loss of a negative one, -log(1 - p) on average, is the same whatever its ranking."""
    p, target = torch.tensor([0.5, 0.75]).view(1, 1, 1, 2), torch.tensor([[0.0, torch.nan]])
    ranked = AreaRankedLoss(area_step=0.25)
    assert ranked.ranks(torch.tensor([[0.0, 0.0], [1.0, 0.25], [1.0, torch.nan]])).tolist() == [False, True, True]
    for ranking in (p, 1 - p, torch.zeros_like(p)):
        assert ranked(p, target, ranking).item() == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_superpixels_are_ranked_whole() -> None:
    """Means of the ranking are 0.65 and 0.4, of the map 0.7 and 0.35; the first has a quarter surely, half at most."""
    superpixels = torch.tensor([0, 0, 1, 1]).view(1, 1, 2, 2)
    pixels = -2 * math.log(1 - 0.35) / 2  # the first is divided: it has no label
    outside = 5 * (0.525 - 0.5) ** 2
    given = {"ranking": image(RANKING), "superpixels": superpixels}
    assert loss((1, 0.5), **given) == pytest.approx(pixels + outside, rel=1e-5)


def test_maps_are_summed_and_padding_counts_for_nothing() -> None:
    ranked = AreaRankedLoss(area_step=0.25)
    wide = torch.cat([image(P), torch.full((1, 1, 2, 2), NAN)], dim=3).expand(-1, 2, -1, -1)
    valid = torch.cat([torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)], dim=3)
    target = torch.tensor([[1, 0.5]])
    for given in ({}, {"ranking": torch.cat([image(RANKING), torch.full((1, 1, 2, 2), 9.0)], dim=3)}):
        alone = {name: value[..., :2] for name, value in given.items()}
        got = float(ranked(wide.nan_to_num(0.99), target, valid=valid, **given))
        assert got == pytest.approx(2 * float(ranked(image(P), target, **alone)), rel=1e-5)


def test_gradients_are_finite_at_the_ends_of_the_scale() -> None:
    p = torch.tensor([0.0, 1.0, 0.0, 1.0]).view(1, 1, 2, 2).requires_grad_()
    for target in ((1, 0.5), (0, NAN)):
        for given in ({}, {"ranking": image(RANKING)}):
            p.grad = None
            AreaRankedLoss(area_step=0.25)(p, torch.tensor([target]), **given).backward()
            assert torch.isfinite(p.grad).all()


def test_the_ranking_has_no_gradient() -> None:
    ranking = image(RANKING).requires_grad_()
    p = image(P).requires_grad_()
    AreaRankedLoss(area_step=0.25)(p, torch.tensor([[1, 0.5]]), ranking=ranking).backward()
    assert ranking.grad is None


def test_proportion_loss_is_least_at_the_proportion() -> None:
    q = torch.tensor([[0.3]])
    v = torch.linspace(0.01, 0.99, 99)[:, None]
    costs = proportion_loss(v.T, q)[0]
    assert int(costs.argmin()) == 29
    assert costs.min() == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(proportion_loss(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0]]))).all()


def test_the_warm_up_ends() -> None:
    ranked = AreaRankedLoss(warm_up=2)
    needed = []
    for epoch in (1, 2, 3):
        ranked.set_epoch(epoch)
        needed.append(ranked.needs_ranking)
    assert needed == [False, False, True]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"area_step": 0}, "area_step"),
        ({"area_step": 30}, "area_step"),
        ({"warm_up": -1}, "warm_up"),
        ({"teacher_decay": 1.0}, "teacher_decay"),
        ({"interval_weight": math.inf}, "interval_weight"),
        ({"reduction": "sum"}, "reduction"),
    ],
)
def test_options_out_of_range(options: dict, name: str) -> None:
    with pytest.raises(InputError, match=name):
        AreaRankedLoss(**options)


def test_targets_out_of_range() -> None:
    with pytest.raises(InputError, match="area"):
        loss((1, 30.0), ranking=image(RANKING))
    with pytest.raises(InputError, match="label"):
        loss((2, NAN), ranking=image(RANKING))
    with pytest.raises(ValueError, match="ranking"):
        loss((1, 0.5), ranking=torch.zeros(1, 1, 4, 4))


def test_outside_of_what_was_seen_the_teacher_stands_in() -> None:
    """The first and third pixel are seen: of them the first alone has a label. v is of .8, .4, .5, .1."""
    seen = torch.tensor([True, False, True, False]).view(1, 1, 2, 2)
    expected = -math.log(0.8) + 5 * max(0, abs(0.45 - 0.375) - 0.125) ** 2
    assert loss((1, 0.5), ranking=image(RANKING), seen=seen) == pytest.approx(expected, rel=1e-5)
