"""Requirements for the lowest or the newest versions that pyproject.toml allows.

    python .ci/versions.py lowest|newest

torch is left out: an index that has other versions than the pinned one without CUDA is rare, and
with CUDA they are gigabytes.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

PINNED = ("torch",)


def requirements(which: str) -> list[str]:
    """`name==lowest` of each dependency, or its bare name."""
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = []
    for text in project["dependencies"]:
        match = re.fullmatch(r"([\w-]+(?:\[[\w,]+\])?)>=([\d.]+)(,<[\d.]+)?", text)
        if match is None:
            sys.exit(f"pyproject.toml: {text!r} has no lowest version as name>=version")
        if match[1] not in PINNED:
            found.append(f"{match[1]}=={match[2]}" if which == "lowest" else match[1])
    return found


if __name__ == "__main__":
    sys.stdout.write("\n".join(requirements(sys.argv[1])) + "\n")
