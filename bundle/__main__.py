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
"""The console command ``cdws``; from a checkout also ``python bundle``."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    """Run the command line, and end with its status."""
    # as in every MONAI bundle, configs and modules call the bundle's code `scripts`; no other must be taken for it
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from scripts.console.command import main as run_command
    from scripts.runtime.errors import report_input_errors

    report_input_errors()
    sys.exit(run_command(sys.argv[1:]))


if __name__ == "__main__":
    main()
