"""The GPUs of this machine, found without loading torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

VISIBLE = "CUDA_VISIBLE_DEVICES"


def gpus(environment: Mapping[str, str], devices: Path = Path("/dev")) -> list[str]:
    """Names of the NVIDIA GPUs that a process may use, as CUDA_VISIBLE_DEVICES takes them.

    That variable's own, if it is set, else their numbers as CUDA counts them: from 0, whatever the
    machine calls them; none without a driver. `devices`: where the system lists them.
    """
    found = [path for path in devices.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]
    if not found or VISIBLE not in environment:
        return [str(number) for number in range(len(found))]
    return [name.strip() for name in environment[VISIBLE].split(",") if name.strip()]
