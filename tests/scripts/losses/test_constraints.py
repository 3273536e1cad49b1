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

"""The area constraints, their slopes and the barrier's schedule against arithmetic on paper."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scripts.losses.constraints import CONSTRAINTS, PENALTIES, AreaConstraint, area_loss, barrier_sharpness, log_barrier
from scripts.runtime.errors import InputError

LN2, LN5 = math.log(2), math.log(5)
KINDS = list(CONSTRAINTS)
MAP = torch.tensor([[[[0.2, 0.4], [0.4, 0.8]]]])  # of mean .45


def cost_and_slope(constraint: AreaConstraint, v: float, area: float) -> tuple[float, float]:
    mean = torch.tensor([[v]], dtype=torch.float64, requires_grad=True)
    cost = constraint(mean, torch.tensor([[area]], dtype=torch.float64))
    (slope,) = torch.autograd.grad(cost.sum() + 0 * mean.sum(), mean)
    return cost.item(), slope.item()


# --- what they cost


@pytest.mark.parametrize(
    ("kind", "penalty", "area", "expected", "slope"),
    [  # the slope is by v
        ("one_sided", "absolute", 0.3, 0.0225, 0.3),  # (.45 - .3)^2
        ("one_sided", "absolute", 0.05, 0.16, 0.8),
        ("one_sided", "absolute", 0.42, 0.0009, 0.06),  # no tolerance
        ("one_sided", "absolute", 0.5, 0.0, 0.0),  # a smaller map than the area is free
        ("one_sided", "absolute", 1.0, 0.0, 0.0),
        ("one_sided", "relative", 0.3, 0.25, 10 / 3),  # (.15 / .3)^2, 2 * .15 / .3^2
        ("one_sided", "relative", 0.05, 64.0, 320.0),  # (.4 / .05)^2, 2 * .4 / .05^2
        ("one_sided", "relative", 0.5, 0.0, 0.0),
        ("two_sided", "absolute", 0.3, 0.01, 0.2),  # .45 is .1 above [.25, .35]
        ("two_sided", "absolute", 0.7, 0.04, -0.4),  # and .2 below [.65, .75]
        ("two_sided", "absolute", 0.42, 0.0, 0.0),
        ("two_sided", "absolute", 0.48, 0.0, 0.0),
        ("two_sided", "relative", 0.3, 1 / 9, 20 / 9),  # (.1 / .3)^2, 2 * .1 / .3^2
        ("two_sided", "relative", 0.7, 4 / 49, -40 / 49),
        ("two_sided", "relative", 0.48, 0.0, 0.0),
        # of sharpness 5, the tangent from -1/25 on: 5 z + (2 ln 5 + 1) / 5
        ("log_barrier", "absolute", 0.45, 2 * math.log(20) / 5, 0.0),  # -.05 from both ends
        ("log_barrier", "absolute", 0.3, 0.7 + 0.4 * LN5 + LN5 / 5, 4.0),  # z .1 and -.2: slopes 5 and 1 / (5 * .2)
        ("log_barrier", "absolute", 0.7, 1.2 + 0.4 * LN5 - math.log(0.3) / 5, 2 / 3 - 5),  # z -.3 and .2
        ("log_barrier", "relative", 0.3, 5 / 3 + 0.2 + 0.4 * LN5 - math.log(2 / 3) / 5, 15.2 - 1 / 3 + 0.8),
        ("log_barrier", "relative", 0.7, 10 / 7 + 0.2 + 0.4 * LN5 - math.log(3 / 7) / 5, (7 / 15 - 5) / 0.7),
        ("none", "absolute", 0.3, 0.0, 0.0),
        ("none", "relative", 0.3, 0.0, 0.0),
    ],
)
def test_cost_and_slope_by_hand(kind: str, penalty: str, area: float, expected: float, slope: float) -> None:
    constraint = AreaConstraint(kind, tolerance=0.05, penalty=penalty, sharpness=5.0)
    assert cost_and_slope(constraint, 0.45, area) == pytest.approx((expected, slope), rel=1e-9, abs=1e-12)
    # the same by the maps: each of their four pixels has a quarter of the slope
    maps = MAP.double().requires_grad_()
    loss = area_loss(maps, torch.tensor([1.0]), torch.tensor([area], dtype=torch.float64), constraint)
    (gradient,) = torch.autograd.grad(loss.sum() + 0 * maps.sum(), maps)
    assert loss.tolist() == [[pytest.approx(expected, rel=1e-6, abs=1e-6)]]  # .2 is a float32
    assert gradient.flatten().tolist() == pytest.approx([slope / 4] * 4, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("tolerance", [0.0, 0.1, 0.15])
def test_tolerance_moves_both_ends(tolerance: float) -> None:
    two_sided = AreaConstraint("two_sided", tolerance)
    assert cost_and_slope(two_sided, 0.7, 0.5)[0] == pytest.approx((0.2 - tolerance) ** 2)
    assert cost_and_slope(two_sided, 0.3, 0.5)[0] == pytest.approx((0.2 - tolerance) ** 2)
    barrier = AreaConstraint("log_barrier", tolerance, sharpness=100.0)
    for v in (0.7, 0.3):  # the violated end's tangent, and the other's logarithm
        expected = 100 * (0.2 - tolerance) + (2 * math.log(100) + 1) / 100 - math.log(0.2 + tolerance) / 100
        assert cost_and_slope(barrier, v, 0.5)[0] == pytest.approx(expected)


def test_defaults_are_the_paper_with_half_a_step_of_the_annotation() -> None:
    constraint = AreaConstraint()
    assert (constraint.kind, constraint.penalty) == ("one_sided", "absolute")
    assert (constraint.tolerance, constraint.sharpness) == (0.05, 5.0)
    loss = area_loss(MAP, torch.tensor([1.0]), torch.tensor([0.3]))
    assert loss.item() == pytest.approx(0.0225)


@pytest.mark.parametrize("kind", ["one_sided", "two_sided", "log_barrier"])
def test_relative_penalty_counts_small_lesions_as_much_as_large_ones(kind: str) -> None:
    """Without a tolerance twice the area costs the same whatever the area; absolutely it costs a hundredth."""
    relative = AreaConstraint(kind, 0.0, "relative")
    small, large = (cost_and_slope(relative, 2 * area, area)[0] for area in (0.04, 0.4))
    assert small == pytest.approx(large)
    if kind != "log_barrier":
        small, large = (cost_and_slope(AreaConstraint(kind, 0.0), 2 * area, area)[0] for area in (0.04, 0.4))
        assert small == pytest.approx(large / 100)


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("kind", KINDS)
def test_cost_grows_away_from_the_area_and_never_breaks(kind: str, penalty: str) -> None:
    """Convex in v, least at the area, and finite with a finite slope for every v and every area, in float32."""
    v = torch.linspace(0, 1, 101).view(-1, 1)
    for area in (0.01, 0.05, 0.3, 0.95, 1.0):
        means = v.clone().requires_grad_()
        cost = AreaConstraint(kind, 0.05, penalty)(means, torch.full((101, 1), area))
        (slope,) = torch.autograd.grad(cost.sum() + 0 * means.sum(), means)
        assert cost.isfinite().all()
        assert slope.isfinite().all()
        assert (slope.diff(dim=0) >= -1e-3 * slope.abs().max()).all()
        assert (cost >= cost[round(area * 100)] - 1e-6).all()


# --- the log-barrier


@pytest.mark.parametrize(
    ("z", "sharpness", "expected", "slope"),
    [
        (-1.0, 2.0, 0.0, 0.5),  # -ln(-z) / t; its slope is -1 / (t z)
        (-0.5, 2.0, LN2 / 2, 1.0),
        (-0.25, 2.0, LN2, 2.0),  # -1/t^2: ln(4) / 2
        (-0.125, 2.0, LN2 + 0.25, 2.0),  # t z + (2 ln t + 1) / t
        (0.0, 2.0, LN2 + 0.5, 2.0),
        (1.0, 2.0, LN2 + 2.5, 2.0),  # where the logarithm has no value
        (-math.e, 1.0, -1.0, 1 / math.e),
        (-1.0, 1.0, 0.0, 1.0),
        (3.0, 1.0, 4.0, 1.0),
        (-5.0, 0.5, -2 * LN5, 0.4),  # -1/t^2 is -4
        (-3.0, 0.5, -1.5 + 2 * (1 - 2 * LN2), 0.5),
    ],
)
def test_log_barrier_by_hand(z: float, sharpness: float, expected: float, slope: float) -> None:
    argument = torch.tensor(z, requires_grad=True)
    value = log_barrier(argument, sharpness)
    value.backward()
    assert value.item() == pytest.approx(expected, abs=1e-6)
    assert argument.grad.item() == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0, 5.0, 20.0, 1000.0])
def test_log_barrier_goes_over_into_its_tangent_without_a_step_or_a_bend(sharpness: float) -> None:
    edge = -1 / sharpness**2
    z = torch.tensor([edge * (1 + 1e-9), edge * (1 - 1e-9)], dtype=torch.float64, requires_grad=True)
    values = log_barrier(z, sharpness)
    (slopes,) = torch.autograd.grad(values.sum(), z)
    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-8, abs=3e-9)
    assert values[0].item() == pytest.approx(2 * math.log(sharpness) / sharpness, rel=1e-8, abs=2e-9)  # ln(t^2) / t
    assert slopes.tolist() == pytest.approx([sharpness] * 2, rel=1e-8)


def test_log_barrier_is_finite_however_much_is_violated() -> None:
    z = torch.tensor([-1e30, -1.0, -1e-30, 0.0, 1e-30, 1.0, 1e30], requires_grad=True)
    values = log_barrier(z, 5.0)
    (slopes,) = torch.autograd.grad(values.sum(), z)
    assert values.isfinite().all()
    assert slopes.isfinite().all()
    assert (values.diff() >= 0).all()


def test_the_sharpness_follows_its_schedule() -> None:
    constraint = AreaConstraint("log_barrier", sharpness=2.0, growth=1.5, maximum=4.0)
    seen = [constraint.sharpness]
    for epoch in (1, 2, 3, 4):
        constraint.set_epoch(epoch)
        seen.append(constraint.sharpness)
    assert seen == pytest.approx([2.0, 2.0, 3.0, 4.0, 4.0])
    constant = AreaConstraint("log_barrier", sharpness=7.0)
    constant.set_epoch(9)
    assert constant.sharpness == 7.0


def test_a_set_sharpness_changes_the_cost() -> None:
    constraint = AreaConstraint("log_barrier", 0.05, sharpness=1.0)
    # v .6 and a .5: z .05 and -.15, both on the tangent up to -1
    assert cost_and_slope(constraint, 0.6, 0.5) == pytest.approx((0.05 + 1 - 0.15 + 1, 0.0), abs=1e-12)
    constraint.set_sharpness(10.0)
    expected = 0.5 + (2 * math.log(10) + 1) / 10 - math.log(0.15) / 10
    assert cost_and_slope(constraint, 0.6, 0.5) == pytest.approx((expected, 10 - 1 / 1.5))
    assert constraint.sharpness == 10.0


@pytest.mark.parametrize(
    ("growth", "epoch", "expected"),
    [
        (1.1, 1, 5.0),
        (1.1, 2, 5.5),
        (1.1, 3, 6.05),
        (2.0, 4, 40.0),
        (2.0, 5, 50.0),  # 80 without the maximum
        (1.1, 10**6, 50.0),
        (2.0, 10**6, 50.0),
        (3.0, 10**6, 50.0),  # 3^1000 has no double
        (3, 10**6, 50.0),
        (1.0, 10**6, 5.0),
    ],
)
def test_schedule_of_the_sharpness_by_hand(growth: float, epoch: int, expected: float) -> None:
    assert barrier_sharpness(epoch, start=5.0, growth=growth, maximum=50.0) == pytest.approx(expected)


def test_schedule_of_the_sharpness_starts_no_higher_than_its_maximum() -> None:
    assert barrier_sharpness(1, 80.0, 1.1, 50.0) == pytest.approx(50.0)


# --- images


@pytest.mark.parametrize(
    ("label", "area"), [(0.0, 0.3), (0.0, 0.7), (0.0, math.nan), (1.0, math.nan)], ids=lambda value: str(value)
)
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("kind", KINDS)
def test_negative_images_and_images_without_an_area_cost_nothing(
    kind: str, penalty: str, label: float, area: float
) -> None:
    maps = MAP.clone().requires_grad_()
    loss = area_loss(maps, torch.tensor([label]), torch.tensor([area]), AreaConstraint(kind, penalty=penalty))
    (gradient,) = torch.autograd.grad(loss.sum() + 0 * maps.sum(), maps)
    assert loss.tolist() == [[0.0]]
    assert gradient.count_nonzero() == 0


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("kind", KINDS)
def test_half_of_the_areas_missing_leaves_the_others_as_they_are(kind: str, penalty: str) -> None:
    maps = torch.rand(6, 2, 3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    area = torch.tensor([0.1, math.nan, 0.4, math.nan, 0.9, math.nan])
    known = ~area.isnan()
    constraint = AreaConstraint(kind, penalty=penalty)
    losses = area_loss(maps, torch.ones(6), area, constraint)
    (gradient,) = torch.autograd.grad(losses.sum() + 0 * maps.sum(), maps)
    alone = maps[known].detach().requires_grad_()
    expected = area_loss(alone, torch.ones(3), area[known], constraint)
    (slope,) = torch.autograd.grad(expected.sum() + 0 * alone.sum(), alone)
    assert torch.equal(losses[known], expected)
    assert torch.equal(gradient[known], slope)
    assert slope.count_nonzero() > 0 or kind == "none"
    assert losses[~known].count_nonzero() == gradient[~known].count_nonzero() == 0


def test_area_loss_takes_each_map_and_image_by_itself() -> None:
    maps = torch.tensor([[0.6, 0.2], [0.7, 0.5]]).view(2, 2, 1, 1).expand(2, 2, 3, 5)
    losses = area_loss(maps, torch.tensor([1, 1]), torch.tensor([0.4, 0.6]))
    assert losses.flatten().tolist() == pytest.approx([0.04, 0.0, 0.01, 0.0], abs=1e-7)
    losses = area_loss(maps, torch.tensor([1, 1]), torch.tensor([0.4, 0.6]), AreaConstraint("two_sided", 0.0))
    assert losses.flatten().tolist() == pytest.approx([0.04, 0.04, 0.01, 0.01])


@pytest.mark.parametrize("garbage", [0.0, 1.0, math.nan])
def test_area_loss_is_of_the_instances_that_count(garbage: float) -> None:
    """The mean of .2, .4 and .4 is 1/3; without a mask .45."""
    maps = MAP.clone()
    maps[..., 1, 1] = garbage
    maps.requires_grad_()
    mask = torch.tensor([[[True, True], [True, False]]])
    loss = area_loss(maps, torch.tensor([1.0]), torch.tensor([0.1]), mask=mask)
    loss.sum().backward()
    assert loss.item() == pytest.approx((1 / 3 - 0.1) ** 2)
    slope = 2 * (1 / 3 - 0.1) / 3
    assert maps.grad.flatten().tolist() == pytest.approx([slope, slope, slope, 0.0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_maps_lose_nothing_more(dtype: torch.dtype) -> None:
    maps = torch.tensor([0.01, 0.02, 0.003, 0.0001], dtype=dtype).view(1, 1, 2, 2)
    loss = area_loss(maps, torch.tensor([1.0]), torch.tensor([0.001]))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx((np.mean(maps.double().numpy()) - 0.001) ** 2, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"kind": "barrier"},
            "constraint must be one of one_sided, two_sided, log_barrier, none, got 'barrier'",
        ),
        ({"penalty": "squared"}, "penalty must be one of absolute, relative, got 'squared'"),
        *[({"tolerance": t}, f"tolerance must be a number, 0 or more; got {t}") for t in (-0.05, math.nan, math.inf)],
        *[
            ({"sharpness": t}, f"barrier#start must be a number above 0; got {t}")
            for t in (0.0, -5.0, math.nan, math.inf)
        ],
        ({"growth": 0.0}, "barrier#growth must be a number above 0; got 0"),
        ({"maximum": math.inf}, "barrier#maximum must be a number above 0; got inf"),
    ],
)
def test_refuses_impossible_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AreaConstraint(**options)


def test_refuses_an_impossible_sharpness_later_and_keeps_the_old_one() -> None:
    constraint = AreaConstraint("log_barrier")
    with pytest.raises(ValueError, match="must be a number above 0; got 0"):
        constraint.set_sharpness(0.0)
    assert constraint.sharpness == 5.0


@pytest.mark.parametrize("area", [30.0, 1.01, 0.0, -0.2, math.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_refuses_an_area_that_is_no_fraction(kind: str, area: float) -> None:
    maps, constraint = torch.full((2, 1, 2, 2), 0.5), AreaConstraint(kind)
    with pytest.raises(InputError, match=f"a fraction of the image, above 0 and up to 1; got {area:g}"):
        area_loss(maps, torch.tensor([1.0, 1.0]), torch.tensor([0.3, area]), constraint)
    area_loss(maps, torch.tensor([1.0, 0.0]), torch.tensor([1.0, area]), constraint)  # of a negative one: unused
