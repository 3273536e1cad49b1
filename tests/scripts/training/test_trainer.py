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

"""Accumulated steps against one-shot gradients and a training loop written by hand, in double precision."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.handlers import from_engine
from scripts.losses.area_ranking import AreaRankedLoss
from scripts.losses.cdws import CDWSLoss
from scripts.networks import CDWSNet
from scripts.runtime.errors import InputError
from scripts.training.sampling import StepSampler
from scripts.training.schedule import SCHEDULES
from scripts.training.trainer import AccumulatingTrainer, MeanLoss, half_precision, image_losses
from torch import nn


class Polynomial(nn.Module):
    """w0 + w1 x of images of one pixel: small enough to follow by hand, and its gradient depends on the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.5, -0.25], dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w[0] + self.w[1] * x


def squares(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(B,): the loss of each image, unequal enough that a wrong weight shows."""
    return (prediction - target).square().flatten(1).sum(1)


def points(count: int) -> list[dict[str, torch.Tensor]]:
    x = torch.linspace(-1, 2, count, dtype=torch.float64)
    return [{"image": value.view(1), "label": 3 * value.view(1) ** 2} for value in x]


def trainer_of(
    items: Sequence[dict], micro: int, batch: int | str, network: nn.Module, lr: float = 0.1, **options: Any
) -> AccumulatingTrainer:
    options = {"device": "cpu", "loss_function": squares, "max_epochs": 1, "decollate": False} | options
    dataset = Dataset(items)
    return AccumulatingTrainer(
        train_data_loader=DataLoader(dataset, batch_sampler=StepSampler(dataset, batch, micro, seed=0)),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=lr, momentum=options.pop("momentum", 0.0)),
        **options,
    )


def flat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


@pytest.mark.parametrize("micro", [1, 4, 7, 18])
def test_accumulated_gradient_equals_the_one_shot_gradient(micro: int) -> None:
    """CDWSNet with its loss on 18 images of both labels, some without area; SGD of lr 1 shows the gradient."""
    torch.manual_seed(0)
    network = CDWSNet().double()
    with torch.no_grad():
        for side in network.sides:
            side.weight.normal_(std=0.05)
        network.fusion.logits.normal_()
    areas = [0.1, 0.3, math.nan]
    targets = [[1.0, areas[i % 3]] if i % 2 else [0.0, math.nan] for i in range(18)]
    items = [{"image": torch.randn(3, 8, 8, dtype=torch.float64), "label": torch.tensor(t)} for t in targets]
    before = flat(list(network.parameters()))

    one_shot = copy.deepcopy(network).train()
    prediction = one_shot(torch.stack([item["image"] for item in items]))
    CDWSLoss(reduction="mean")(prediction, torch.tensor(targets)).backward()
    expected = flat([p.grad for p in one_shot.parameters()])

    trainer = trainer_of(items, micro, "all", network, lr=1.0, loss_function=CDWSLoss(reduction="none"))
    trainer.run()
    gradient = before - flat(list(network.parameters()))
    assert (gradient - expected).norm() <= 1e-6 * expected.norm()
    for name, parameter in one_shot.named_parameters():  # small parameters as well as the whole
        accumulated = dict(network.named_parameters())[name].grad
        assert (accumulated - parameter.grad).norm() <= 1e-6 * parameter.grad.norm(), name


def test_mixed_precision_is_bfloat16s_gradient_in_float32s_weights() -> None:
    """Numbers of 8 bits, through as many convolutions: more than a thousandth off, less than a twentieth."""
    torch.manual_seed(0)
    network = CDWSNet()
    with torch.no_grad():
        for side in network.sides:
            side.weight.normal_(std=0.05)
    items = [{"image": torch.randn(3, 16, 16), "label": torch.tensor([i % 2, 0.3])} for i in range(6)]
    gradients = {}
    for amp in (False, True):
        trained = copy.deepcopy(network)
        features = []
        trained.features[2].register_forward_hook(lambda _, __, output, seen=features: seen.append(output.dtype))
        trainer = trainer_of(items, 4, "all", trained, loss_function=CDWSLoss(reduction="none"), amp=amp)
        trainer.run()
        assert set(features) == {torch.bfloat16 if amp else torch.float32}
        assert {p.dtype for p in trained.parameters()} == {image_losses(trainer.state.output).dtype} == {torch.float32}
        gradients[amp] = flat([p.grad for p in trained.parameters()])
    difference = (gradients[True] - gradients[False]).norm() / gradients[False].norm()
    assert 1e-3 < difference < 0.05


@pytest.mark.parametrize(("warm_up", "said"), [(2, []), (3, ["Too short a training for areas to be used"])])
def test_a_warm_up_without_an_end_is_named(warm_up: int, said: list[str], caplog: pytest.LogCaptureFixture) -> None:
    items = [{"image": torch.zeros(3, 8, 8), "label": torch.tensor([0.0, 0.0])}]
    loss = AreaRankedLoss(warm_up=warm_up, reduction="none")
    trainer_of(items, 1, 1, CDWSNet(), loss_function=loss, max_epochs=3)
    assert [message.partition(":")[0] for message in caplog.messages] == said


@pytest.mark.parametrize("supported", [True, False])
def test_half_precision_of_a_gpu(monkeypatch: pytest.MonkeyPatch, supported: bool) -> None:
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: supported and not including_emulation
    )
    assert half_precision(torch.device("cuda")) == (torch.bfloat16 if supported else torch.float16)


def weights_after_steps(items: Sequence[dict], batches: Sequence[Sequence[int]], lr: float) -> list[torch.Tensor]:
    """Heavy-ball descent written out: the weights after a step on the mean loss of each batch of indices."""
    w = Polynomial().w.detach().clone()
    velocity = torch.zeros(2, dtype=torch.float64)
    history = []
    for batch in batches:
        x, y = (torch.cat([items[i][key] for i in batch]) for key in ("image", "label"))
        residual = w[0] + w[1] * x - y
        gradient = 2 * torch.stack([residual.mean(), (residual * x).mean()])
        velocity = 0.9 * velocity + gradient
        w = w - lr * velocity
        history.append(w)
    return history


@pytest.mark.parametrize(
    ("count", "micro", "batch", "sizes"),
    [
        (18, 4, 8, [8, 8, 2]),  # the last step has 2 images
        (18, 4, 4, [4, 4, 4, 4, 2]),
        (16, 4, 8, [8, 8]),
        (18, 4, 12, [12, 6]),  # 4 and 2 images in the last step
        (18, 4, 40, [18]),  # larger than the data set
        (18, 7, "all", [18]),
    ],
)
def test_steps_equal_a_loop_written_by_hand(count: int, micro: int, batch: int | str, sizes: list[int]) -> None:
    items = points(count)
    network = Polynomial()
    trainer = trainer_of(items, micro, batch, network, momentum=0.9, lr=0.05, max_epochs=3)
    seen = [network.w.detach().clone()]
    order: list[float] = []

    @trainer.on(Events.ITERATION_COMPLETED)
    def record() -> None:
        order.extend(trainer.state.batch["image"].flatten().tolist())
        if not torch.equal(network.w, seen[-1]):
            seen.append(network.w.detach().clone())

    trainer.run()
    indices = [next(i for i, item in enumerate(items) if item["image"].item() == x) for x in order]
    for epoch in range(3):
        assert sorted(indices[epoch * count : (epoch + 1) * count]) == list(range(count))
    remaining = iter(indices)
    steps = [[next(remaining) for _ in range(size)] for size in sizes * 3]
    expected = weights_after_steps(items, steps, lr=0.05)
    torch.testing.assert_close(torch.stack(seen[1:]), torch.stack(expected), rtol=1e-12, atol=0)


def test_losses_of_the_images_and_their_mean_are_left_in_the_state() -> None:
    items = points(5)
    trainer = trainer_of(items, 2, "all", Polynomial())
    trainer.run()
    x = items[4]["image"].item()  # the last batch of the loader holds the fifth image alone
    expected = (0.5 - 0.25 * x - 3 * x**2) ** 2
    (image,) = trainer.state.output
    assert image["image_loss"].item() == image["loss"].item() == pytest.approx(expected)
    assert image["image"].item() == x
    assert image["pred"].item() == pytest.approx(0.5 - 0.25 * x)
    assert from_engine(["loss"], first=True)(trainer.state.output).item() == pytest.approx(expected)
    assert trainer.state.mean_loss == pytest.approx(expected)


@pytest.mark.parametrize("micro", [1, 2, 5])
def test_mean_loss_weighs_the_images_and_not_the_batches(micro: int) -> None:
    items = points(5)
    trainer = trainer_of(items, micro, "all", Polynomial(), lr=0.0, key_train_metric={"train_loss": MeanLoss()})
    trainer.run()
    expected = sum((0.5 - 0.25 * x - 3 * x**2) ** 2 for x in (-1, -0.25, 0.5, 1.25, 2)) / 5
    assert trainer.state.metrics["train_loss"] == pytest.approx(expected, rel=1e-6)
    assert isinstance(trainer.state.metrics["train_loss"], float)


class LittleMemory(torch.autograd.Function):
    """The identity, for which there is memory for so many images; it runs out on the way forth or on the way back."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, images: int, forth: bool) -> torch.Tensor:
        ctx.images, ctx.forth = images, forth
        if forth and len(x) > images:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple:
        if not ctx.forth and len(gradient) > ctx.images:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 2147483648 bytes.")
        return gradient, None, None


class Cramped(Polynomial):
    """Its second weight gets its gradient before memory runs out, on the way back, and its first one after."""

    def __init__(self, images: int, forth: bool) -> None:
        super().__init__()
        self.late = nn.Parameter(torch.tensor(0.75, dtype=torch.float64))
        self.images, self.forth = images, forth

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return LittleMemory.apply(super().forward(x), self.images, self.forth) * self.late


def losses_in(trainer: AccumulatingTrainer) -> list[float]:
    """Losses of the images in the order in which a run sees them."""
    losses: list[float] = []
    event = Events.ITERATION_COMPLETED
    trainer.add_event_handler(event, lambda engine: losses.extend(image_losses(engine.state.output).tolist()))
    trainer.run()
    return losses


@pytest.mark.parametrize("forth", [True, False])
@pytest.mark.parametrize(("fits", "warnings"), [(16, 0), (4, 1), (3, 2), (1, 3)])
def test_what_does_not_fit_into_memory_goes_through_in_parts(
    fits: int, warnings: int, forth: bool, caplog: pytest.LogCaptureFixture
) -> None:
    ample, cramped = Cramped(100, forth), Cramped(fits, forth)
    orders = [losses_in(trainer_of(points(19), 8, "all", n, max_epochs=3, momentum=0.9)) for n in (ample, cramped)]
    torch.testing.assert_close(flat(list(cramped.parameters())), flat(list(ample.parameters())), rtol=1e-12, atol=0)
    assert orders[1] == pytest.approx(orders[0], rel=1e-12)
    assert len(orders[0]) == 3 * 19
    assert caplog.text.count("do not fit into the memory") == warnings  # once for each size that is too large


def test_a_single_image_that_does_not_fit_is_an_error_with_remedies() -> None:
    with pytest.raises(InputError, match=r"does not fit into the memory of cpu.*--spatial_size"):
        trainer_of(points(5), 4, "all", Cramped(0, forth=True)).run()


def test_another_error_of_the_network_is_not_taken_for_want_of_memory() -> None:
    class Broken(Polynomial):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        trainer_of(points(5), 4, "all", Broken()).run()


def test_mean_loss_of_other_outputs_and_of_nan() -> None:
    metric = MeanLoss(lambda output: output["a"] - output["b"])
    for a, b in (([1.0, 2.0, 6.0], 1.0), ([5.0], 0.0)):
        metric.iteration_completed(_engine_with({"a": torch.tensor(a), "b": b}))
    assert metric.compute() == 2.75  # (0 + 1 + 5 + 5) / 4
    metric.iteration_completed(_engine_with({"a": torch.tensor([math.nan]), "b": 0.0}))
    assert math.isnan(metric.compute())


def _engine_with(output: dict) -> Any:
    trainer = trainer_of(points(1), 1, "all", Polynomial())
    trainer.state.output = output
    return trainer


class Follow(nn.Module):
    """Squared distance to twice the teacher's map, from the second epoch on; to the label before."""

    inputs = ("ranking",)
    teacher_decay = 0.75

    def __init__(self) -> None:
        super().__init__()
        self.needs_ranking = False
        self.rankings: list[torch.Tensor] = []

    def set_epoch(self, epoch: int) -> None:
        self.needs_ranking = epoch > 1

    def forward(
        self, prediction: torch.Tensor, target: torch.Tensor, ranking: torch.Tensor | None = None
    ) -> torch.Tensor:
        assert (ranking is not None) == self.needs_ranking
        if ranking is not None:
            self.rankings.append(ranking)
        return squares(prediction, target if ranking is None else 2 * ranking)


@pytest.mark.parametrize("micro", [1, 2, 5])
def test_the_teacher_is_the_average_of_the_weights(micro: int) -> None:
    """Against a loop written by hand, whatever goes through the network at once."""
    items = points(5)
    x = torch.stack([item["image"] for item in items])
    y = torch.stack([item["label"] for item in items])
    w = torch.tensor([0.5, -0.25], dtype=torch.float64)
    teacher = w.clone()
    expected = []
    for epoch in range(3):
        target = y if epoch == 0 else 2 * (teacher[0] + teacher[1] * x)
        if epoch > 0:
            expected.append(target / 2)
        error = 2 * (w[0] + w[1] * x - target)
        w = w - 0.1 * torch.stack([error.mean(), (error * x).mean()])
        teacher = 0.75 * teacher + 0.25 * w

    network, loss = Polynomial(), Follow()
    trainer = trainer_of(items, micro, "all", network, loss_function=loss, max_epochs=3)
    trainer.run()
    torch.testing.assert_close(network.w.detach(), w)
    torch.testing.assert_close(trainer.teacher.module.w, teacher)
    torch.testing.assert_close(torch.cat(loss.rankings), torch.cat(expected))


@pytest.mark.parametrize("micro", [1, 2, 5])
def test_the_teacher_sees_only_images_whose_pixels_are_ranked(micro: int) -> None:
    class Mean(nn.Module):
        """(B, 1, H, W) to its pixels times a weight; keeps what it is shown in evaluation."""

        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(1))
            self.shown: list[float] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not self.training:
                self.shown += x[:, 0, 0, 0].tolist()
            return self.w * x

    class Some(Follow):
        def ranks(self, target: torch.Tensor) -> torch.Tensor:
            return target[:, 0] > 0.5

        def forward(self, prediction, target, ranking=None):
            self.rankings += [] if ranking is None else [ranking]
            return (prediction - prediction.detach()).flatten(1).sum(1)

    items = [
        {"image": torch.full((1, 2, 3), value), "label": torch.tensor([label])}
        for value, label in ((1.0, 0.0), (2.0, 1.0), (3.0, 0.0), (4.0, 1.0), (5.0, 0.0))
    ]
    network, loss = Mean(), Some()
    trainer = trainer_of(items, micro, "all", network, lr=0.0, loss_function=loss, max_epochs=2)
    trainer.run()
    assert sorted(trainer.teacher.module.shown) == [2.0, 4.0]
    assert sorted(torch.cat(loss.rankings).mean(dim=(1, 2, 3)).tolist()) == [0.0, 0.0, 0.0, 2.0, 4.0]


def test_a_ranking_that_comes_with_the_images_takes_the_teachers_place() -> None:
    items = [{**item, "ranking": torch.full_like(item["image"], 3.0)} for item in points(4)]
    loss = Follow()
    loss.set_epoch = lambda _: setattr(loss, "needs_ranking", True)
    trainer_of(items, 2, "all", Polynomial(), loss_function=loss, max_epochs=1).run()
    assert torch.cat(loss.rankings).unique().tolist() == [3.0]


def test_all_that_the_loss_is_given_is_on_the_device_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # there is none for a device without numbers
    seen = {}

    class Look(Follow):
        inputs = ("ranking", "window")

        def __call__(self, prediction: torch.Tensor, target: torch.Tensor, **given: torch.Tensor) -> torch.Tensor:
            seen.update({name: value.device.type for name, value in {"target": target, **given}.items()})
            raise InterruptedError

    items = [{**item, "ranking": item["image"].clone()} for item in points(2)]
    trainer = trainer_of(items, 2, "all", Polynomial().to("meta"), device="meta", loss_function=Look())
    with pytest.raises(InterruptedError):
        trainer.run()
    assert seen == {"target": "meta", "ranking": "meta"}


def test_without_a_loss_that_asks_there_is_no_teacher() -> None:
    assert trainer_of(points(2), 1, 2, Polynomial()).teacher is None


def test_the_gradient_of_a_step_is_cut_at_its_norm() -> None:
    """Of one step over all images, however many go through at once: SGD of lr 1 shows it."""
    moved = []
    for micro in (1, 5):
        network = Polynomial()
        before = network.w.detach().clone()
        trainer_of(points(5), micro, "all", network, lr=1.0, max_norm=0.5).run()
        moved.append(network.w.detach() - before)
    assert float(moved[0].norm()) == pytest.approx(0.5)
    torch.testing.assert_close(moved[0], moved[1])
    with pytest.raises(InputError, match="max_norm"):
        trainer_of(points(5), 1, "all", Polynomial(), max_norm=0)


def test_the_learning_rate_follows_the_schedule_step_by_step() -> None:
    """One step to a constant gradient of 1: what the weight moves by is the rate. 10 steps, of which 3 rise."""

    class Slope(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.w.expand(len(x), 1)

    network, seen = Slope(), [0.0]
    trainer = trainer_of(
        points(5), 1, 1, network, lr=1.0, max_epochs=2, lr_schedule=SCHEDULES["one_cycle"],
        loss_function=lambda prediction, target: prediction.flatten(),
    )  # fmt: skip
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda _: seen.append(-network.w.item()))
    trainer.run()
    rising = [0.04 + 0.96 * step / 3 for step in range(3)]
    falling = [(1 + math.cos(math.pi * step / 7)) / 2 for step in range(7)]
    assert torch.tensor(seen).diff().tolist() == pytest.approx(rising + falling, abs=1e-6)


def test_the_network_learns_in_its_window_and_the_teacher_sees_all() -> None:
    """Images of 2 x 3 pixels, windows of 1 x 2 at a place of their own: the network adds its weight to each pixel."""

    class Add(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1))
            self.shapes: list[tuple[int, ...]] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                self.shapes.append(tuple(x.shape))
            return x + self.w

    class Look(Follow):
        inputs = ("ranking", "window", "seen")

        def forward(self, prediction, target, ranking=None, seen=None):
            self.given = prediction.detach(), ranking, seen
            return prediction.flatten(1).sum(1)

    pixels = torch.arange(1.0, 7.0).view(1, 2, 3)
    windows = [[0, 1, 1, 2], [1, 0, 1, 2]]
    items = [{"image": pixels, "label": torch.zeros(1), "window": torch.tensor(window)} for window in windows]
    network, look = Add(), Look()
    trainer_of(items, 2, "all", network, lr=0.0, loss_function=look, max_epochs=2).run()
    assert network.shapes == [(2, 1, 2, 3), (2, 1, 1, 2)]  # the whole image in the warm-up
    prediction, ranking, seen = look.given
    assert ranking.tolist() == torch.stack([pixels, pixels]).tolist()
    assert prediction.tolist() == [[[[0, 2, 3], [0, 0, 0]]], [[[0, 0, 0], [4, 5, 0]]]]
    assert torch.equal(seen, prediction > 0)
    assert network.w.grad.tolist() == [2.0]  # two pixels of each of two images, over the images


@pytest.mark.parametrize(("seconds", "told"), [(40, []), (41, ["about 1.0 hours"]), (410, ["about 10.0 hours"])])
def test_a_training_of_over_an_hour_says_so(seconds: float, told: list[str], monkeypatch, caplog) -> None:
    """Of 100 iterations 88 are left after the twelfth, 9 after the third."""
    clock = iter([1000.0, 1000.0 + 9 * seconds])
    monkeypatch.setattr("scripts.training.trainer.time", SimpleNamespace(monotonic=lambda: next(clock)))
    with caplog.at_level("INFO"):
        trainer_of(points(20), 1, 2, Polynomial(), lr=1e-3, max_epochs=5).run()
    assert [re.search("about .* hours", r.message)[0] for r in caplog.records if "will take" in r.message] == told
