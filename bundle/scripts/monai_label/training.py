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

"""Training that goes on from the bundle's model."""

from __future__ import annotations

from monai.handlers import CheckpointLoader

__all__ = ["initial_weights"]


def initial_weights(pretrained: str, first_handler: str) -> str:
    """
    The weights that a network to be trained is made with: none from elsewhere when a checkpoint replaces them anyway.

    MONAI Label goes on from the bundle's ``model.pt``: it puts MONAI's `CheckpointLoader` before the trainer's
    handlers. So it neither waits for a download nor needs the internet.

    Args:
        pretrained: what was asked for, see `CDWSNet`.
        first_handler: ``_target_`` of the trainer's first handler.
    """
    return "random" if first_handler == CheckpointLoader.__name__ else pretrained
