"""Small and read-only disks: a file system of one's own, seen by one process and gone with it.

    with SmallDisk(folder, size_kb=7000) as disk:
        disk.sweep("run", ...)          # folder is that disk to the command
        disk.resize(50_000)

Needs Linux, and rights to make a user namespace (root, or as most systems allow it).
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from searches import SWEEP, environment
from waiting import PATIENCE_S

UNSHARE = ["unshare", "--user", "--map-root-user", "--mount"]


def why_no_disk(folder: Path) -> str:
    """Why no file system can be mounted here; empty where it can."""
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        return "unshare and nsenter are not installed"
    tried = subprocess.run(
        [*UNSHARE, "mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if tried.returncode == 0 else f"nothing can be mounted: {tried.stderr.strip()}"


class SmallDisk:
    """A namespace in which `folder` is a disk; it lives as long as the process that holds it."""

    def __init__(self, folder: Path, mounts: Sequence[str]) -> None:
        self.folder = folder
        script = " && ".join([*mounts, "echo ready", "read _"])
        self._holder = subprocess.Popen(
            [*UNSHARE, "sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n"

    def __enter__(self) -> SmallDisk:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._holder.communicate("\n", timeout=PATIENCE_S)

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """A command within, with `folder` as its current one."""
        enter = ["nsenter", "-t", str(self._holder.pid), "-U", "-m", "--preserve-credentials"]
        words = [str(word) for word in command]
        return subprocess.run(
            [*enter, "sh", "-c", 'cd "$0" && exec "$@"', str(self.folder), *words],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def sweep(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """The real command line within."""
        return self.run(*SWEEP, *arguments)


def full_disk(folder: Path, size_kb: int) -> SmallDisk:
    """A disk of so many kilobytes."""
    return SmallDisk(folder, [f"mount -t tmpfs -o size={size_kb}k tmpfs '{folder}'"])


def read_only_disk(folder: Path) -> SmallDisk:
    """`folder` as it is, where nobody may write, not even root."""
    bind = f"mount --bind '{folder}' '{folder}'"
    return SmallDisk(folder, [bind, f"mount -o remount,ro,bind '{folder}'"])
