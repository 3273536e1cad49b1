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

"""
Strokes as instances of known label.

Shapes: a probability map is (B, M, H, W), M maps of B images; strokes are (B, 1, H, W) integers, see
`scripts.images.strokes`. Everything is computed in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from scripts.images.strokes import POSITIVE, UNKNOWN

__all__ = ["P_MIN", "labelled_cross_entropy", "stroke_loss"]

P_MIN = 1e-6  # of a probability in a cross-entropy: bounds the loss of a pixel by 14 and its gradient by 10^6


def labelled_cross_entropy(probability: torch.Tensor, labels: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """
    Mean cross-entropy over the pixels of an image whose label is known.

    Args:
        probability: (B, M, H, W) in 0..1.
        labels: (B, 1, H, W), 0. or 1.
        known: (B, 1, H, W), True for the pixels that count.

    Returns:
        (B, M); 0 where no pixel counts.
    """
    p = torch.where(known, probability, 0.5).clamp(P_MIN, 1 - P_MIN)
    cost = F.binary_cross_entropy(p, labels.expand_as(p), reduction="none")
    return (cost * known).sum(dim=(2, 3)) / known.sum(dim=(2, 3)).clamp(min=1)


def stroke_loss(probability: torch.Tensor, strokes: torch.Tensor, seen: torch.Tensor | None = None) -> torch.Tensor:
    """
    Mean cross-entropy over the pixels under strokes.

    Args:
        probability: (B, M, H, W) in 0..1.
        strokes: (B, 1, H, W), on any device.
        seen: (B, 1, H, W), True where the prediction is the network's; everywhere where it is None.

    Returns:
        (B, M); 0 for an image without strokes.

    Examples:
        >>> stroke_loss(torch.tensor([[[[0.8, 0.3, 0.9]]]]), torch.tensor([[[[2, 0, 1]]]]))  # log 0.8 and log 0.1
        tensor([[1.2629]])
    """
    strokes = strokes.to(probability.device)
    known = strokes > UNKNOWN
    return labelled_cross_entropy(
        probability.float(), (strokes == POSITIVE).float(), known if seen is None else known & seen
    )
