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

"""Pixel average precision: small cases by hand, random ones against the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.handlers import IgniteMetricHandler, from_engine
from scripts.metrics.pixel import PixelAveragePrecision, compute_pixel_average_precision, compute_pixel_counts


def exact_average_precision(probability, truth):
    """Sum of (R_n - R_(n-1)) P_n over distinct probabilities, from the highest down."""
    positives, last, area = truth.sum(), 0.0, 0.0
    for threshold in np.unique(probability)[::-1]:
        predicted = probability >= threshold
        recall = truth[predicted].sum() / positives
        area += (recall - last) * truth[predicted].mean()
        last = recall
    return area


def average_precision(probability, truth):
    return compute_pixel_average_precision(compute_pixel_counts(np.asarray(probability), np.asarray(truth)))


def test_by_hand():
    # From the highest down: 0.8 is right (1/2, 1), 0.4 wrong (1/2, 1/2), 0.35 right (1, 2/3): 1/2 + 1/2 * 2/3.
    assert average_precision([[0.1, 0.4, 0.35, 0.8]], [[0, 0, 1, 1]]) == pytest.approx(5 / 6)
    assert average_precision([[0.2, 0.9]], [[0, 1]]) == 1.0
    assert average_precision([[0.9, 0.2, 0.1, 0.0]], [[0, 0, 0, 1]]) == pytest.approx(1 / 4)
    assert average_precision([[0.5, 0.5, 0.5, 0.5]], [[0, 1, 0, 0]]) == pytest.approx(1 / 4)  # ties stand together


def test_maps_of_8_bits_are_exact():
    rng = np.random.default_rng(0)
    probability = np.append(np.arange(256), rng.integers(0, 256, 1000)) / 255
    truth = rng.random(probability.shape) < probability
    expected = exact_average_precision(probability, truth)
    assert average_precision(probability[None], truth[None]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("scale", [0.5, 3, 10])
def test_error_of_the_bins_is_small_however_sure_the_network_is(scale):
    rng = np.random.default_rng(0)
    logit = scale * rng.standard_normal((60, 60))
    probability = (1 / (1 + np.exp(-logit))).astype(np.float32)
    truth = rng.random((60, 60)) < 1 / (1 + np.exp(-logit / scale))
    difference = average_precision(probability, truth) - exact_average_precision(probability, truth)
    assert abs(difference) < 1e-4


def test_thresholds_of_the_curve_are_probabilities():
    probability = np.array([[0.0, 0.001, 0.25, 0.9, 1.0]])
    metric = PixelAveragePrecision()
    metric(probability[None, None], np.array([[[[0, 1, 0, 1, 1]]]]))
    curve = metric.curve()
    np.testing.assert_allclose(curve.thresholds, probability[0, ::-1], rtol=4e-4)
    np.testing.assert_allclose(curve.recall, [1 / 3, 2 / 3, 2 / 3, 1, 1])
    np.testing.assert_allclose(curve.precision, [1, 1, 2 / 3, 3 / 4, 3 / 5])


def test_constant_maps_and_one_class():
    assert average_precision(np.zeros((1, 1)), np.ones((1, 1))) == 1.0
    assert average_precision(np.ones((2, 500)), np.ones((2, 500))) == 1.0
    assert np.isnan(average_precision(np.full((4, 4), 0.3), np.zeros((4, 4))))
    assert torch.isnan(PixelAveragePrecision().aggregate())


@pytest.mark.parametrize(
    ("y_pred", "y", "message"),
    [
        (np.full((4, 4), np.nan), np.ones((4, 4)), "y_pred contains NaN"),
        (np.full((4, 4), 2.0), np.ones((4, 4)), r"y_pred must be within 0..1, got 2..2"),
        (np.zeros((4, 4)), np.zeros((5, 4)), "same size"),
        (np.zeros((4, 4)), np.zeros((2, 4, 4)), "y must have one channel, got 2"),
    ],
)
def test_bad_images_are_refused(y_pred, y, message):
    with pytest.raises(ValueError, match=message):
        compute_pixel_counts(y_pred, y)


def test_metric_pools_pixels_of_images_of_any_size():
    rng = np.random.default_rng(0)
    y_pred = [rng.integers(0, 256, (1, 10, 10 + k)) / 255 for k in range(4)]
    y = [rng.random(p.shape) < p for p in y_pred]
    y[1][:] = False  # pixels of a negative image count
    metric = PixelAveragePrecision()
    metric([torch.from_numpy(p).float() for p in y_pred[:3]], [torch.from_numpy(t) for t in y[:3]])
    metric(y_pred[3][None], y[3][None])
    pooled = (np.concatenate([image.ravel() for image in side]) for side in (y_pred, y))
    assert metric.aggregate().item() == pytest.approx(exact_average_precision(*pooled), abs=1e-12)
    curve = metric.curve()
    assert curve.recall[-1] == 1
    assert curve.precision[-1] == pytest.approx(sum(t.sum() for t in y) / sum(t.size for t in y))
    assert (np.diff(curve.thresholds) < 0).all()
    assert metric.get_buffer().shape == (2, 65536)


def test_in_an_engine():
    batch = [{"pred": torch.tensor([[[0.1, 0.4, 0.35, 0.8]]]), "label": torch.tensor([[[0, 0, 1, 1]]])}]
    engine = Engine(lambda engine, batch: batch)
    transform = from_engine(["pred", "label"])
    handler = IgniteMetricHandler(PixelAveragePrecision(), output_transform=transform, save_details=False)
    handler.attach(engine, "px_ap")
    engine.run([batch])
    engine.run([batch])
    assert engine.state.metrics["px_ap"] == pytest.approx(5 / 6)
