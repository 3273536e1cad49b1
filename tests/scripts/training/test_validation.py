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

"""The epochs after which a training is validated."""

import pytest
from ignite.engine import Engine
from monai.data import DataLoader, Dataset
from monai.engines import Evaluator
from scripts.training.validation import Validation


class Validator(Evaluator):
    """Notes the epochs after which it is run."""

    def __init__(self, images: int) -> None:
        self.data_loader = DataLoader(Dataset(list(range(images))))
        self.epochs: list[int] = []

    def run(self, epoch: int = 1) -> None:
        self.epochs.append(epoch)


@pytest.mark.parametrize(
    ("interval", "images", "epochs"),
    [
        (1, 1, [1, 2, 3, 4, 5]),
        (2, 1, [2, 4, 5]),
        (5, 1, [5]),
        (100, 1, [5]),  # a checkpoint is chosen nevertheless
        (1, 0, []),  # as in MONAI Label
    ],
)
def test_every_few_epochs_and_after_the_last(interval: int, images: int, epochs: list[int]) -> None:
    validator, trainer = Validator(images), Engine(lambda engine, batch: None)
    Validation(validator, interval).attach(trainer)
    trainer.run([0], max_epochs=5)
    assert validator.epochs == epochs
