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

"""Where a network's weights come from: the checkpoint of a trained one, or pretrained weights to begin with."""

from __future__ import annotations

from pathlib import Path

import torch
from ignite.engine import Engine, Events
from monai.handlers import CheckpointLoader

from scripts.errors import InputError

__all__ = ["NetworkLoader", "initial_weights"]


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


class NetworkLoader:
    """
    Loads a trained network when an engine starts.

    MONAI's `CheckpointLoader` says the same of a damaged file and of another network: a traceback.

    Args:
        network: takes the weights.
        path: file of a state dict, or of a checkpoint that has one under ``"model"``.
        map_location: see `torch.load`.

    Raises:
        InputError: when the file is missing, damaged, of another method, or of another network.
    """

    def __init__(self, network: torch.nn.Module, path: str, map_location: str | torch.device | None = None) -> None:
        self.network = network
        self.path = path
        self.map_location = map_location

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        if not Path(self.path).is_file():
            raise InputError(f"There is no checkpoint '{self.path}'; train first, or name one with --ckpt_path PATH.")
        try:
            content = torch.load(self.path, map_location=self.map_location, weights_only=True)
        except Exception as error:  # it raises nearly anything on a damaged file
            raise InputError(
                f"'{self.path}' is damaged, or not a checkpoint that PyTorch reads; name another by --ckpt_path."
            ) from error
        bare = not isinstance(content, dict) or "model" not in content
        try:
            self.network.load_state_dict(content if bare else content["model"])
        except InputError as error:
            raise InputError(f"The checkpoint '{self.path}' can't be used here: {error}") from error
        except (RuntimeError, TypeError) as error:
            # load_state_dict gives a headline, then a line for each kind of difference
            difference = str(error).splitlines()[-1].strip()[:200]
            raise InputError(
                f"The checkpoint '{self.path}' is of another network ({difference}); "
                "name one that was trained with the same network settings."
            ) from error
