"""Provenance of a study: git commit, versions of libraries and Python."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata

PARTS = ("sweep", "torch", "lightning", "optuna", "mlflow")


def provenance() -> dict[str, str]:
    """Tags for a study's parent run. Never raises; unknown facts are left out."""
    tags = {"sweep.python": platform.python_version(), "sweep.platform": platform.platform()}
    for part in PARTS:
        try:
            tags[f"sweep.version.{part}"] = metadata.version(part)
        except metadata.PackageNotFoundError:
            continue
    commit = _git("rev-parse", "HEAD")
    if commit:
        is_dirty = bool(_git("status", "--porcelain", "--untracked-files=no"))
        tags["mlflow.source.git.commit"] = commit
        tags["sweep.git.dirty"] = str(is_dirty).lower()
    return tags


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
