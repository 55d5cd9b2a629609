"""The GPUs of this machine, found without loading torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

VISIBLE = "CUDA_VISIBLE_DEVICES"


def gpus(environment: Mapping[str, str], devices: Path = Path("/dev")) -> list[str]:
    """Names of the NVIDIA GPUs that a process may use, as CUDA_VISIBLE_DEVICES takes them.

    That variable's own, if it is set, else the numbers of the machine's GPUs; none without a
    driver. `devices`: where the system lists them.
    """
    found = sorted(
        int(match[1]) for path in devices.glob("nvidia*")
        if (match := re.fullmatch(r"nvidia(\d+)", path.name))
    )  # fmt: skip
    if not found or VISIBLE not in environment:
        return [str(number) for number in found]
    return [name.strip() for name in environment[VISIBLE].split(",") if name.strip()]
