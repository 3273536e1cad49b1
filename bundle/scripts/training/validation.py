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

"""Validating while a training lasts."""

from __future__ import annotations

from ignite.engine import Engine, Events
from monai.engines import Evaluator
from monai.handlers import ValidationHandler

from scripts.runtime.values import whole_number

__all__ = ["Validation"]


class Validation(ValidationHandler):
    """
    Handler of a trainer that validates every few epochs and after the last, where there are images to validate on.

    MONAI Label has none while few images are labelled.

    Args:
        validator: evaluator with a `DataLoader` of the images.
        interval: epochs from one validation to the next.

    Raises:
        InputError: when the interval is no whole number above 0.
    """

    def __init__(self, validator: Evaluator, interval: int = 1) -> None:
        whole_number("val_interval", interval)
        super().__init__(interval, validator)

    def attach(self, engine: Engine) -> None:
        if len(self.validator.data_loader.dataset) > 0:
            engine.add_event_handler(Events.EPOCH_COMPLETED(event_filter=self._is_due), self)
            engine.state.val_interval = self.interval  # for the record

    def _is_due(self, engine: Engine, epoch: int) -> bool:
        return epoch % self.interval == 0 or epoch == engine.state.max_epochs
