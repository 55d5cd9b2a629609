"""A page as PNG: an installed Chromium opens it without a network and takes its picture."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from sweep.errors import ConfigError, SweepError

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome",
            "microsoft-edge")  # fmt: skip
WIDTH, HEIGHT, HIGHEST = 1160, 1400, 16_000
"""Pixels of the window; the most that a picture may have from top to bottom."""
TIMEOUT_S = 60.0
_FLAGS = (
    "--headless", "--disable-gpu", "--no-first-run", "--disable-sync", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)  # fmt: skip


def to_png(page: str) -> bytes:
    """The picture of an HTML page. Raises ConfigError without a browser, else SweepError."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        raise ConfigError(
            "--format png needs Chromium or Chrome, and none is installed (Debian and Ubuntu: "
            "apt install chromium). --format html needs none"
        )
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        file, picture = Path(folder, "page.html"), Path(folder, "page.png")
        file.write_text(page, encoding="utf-8")
        drawn = _run(found, folder, HEIGHT, "--dump-dom", file.as_uri())
        told = re.search(r'data-page-height="(\d+)"', drawn)
        height = min(HIGHEST, int(told[1])) if told else HEIGHT
        _run(found, folder, height, f"--screenshot={picture}", file.as_uri())
        if not picture.is_file():
            raise SweepError(f"{found} made no picture of the page: use --format html")
        return picture.read_bytes()


def _run(browser: str, folder: str, height: int, *arguments: str) -> str:
    """Open the page in a window of that height; the browser's output."""
    as_root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    command = [browser, *_FLAGS, *as_root, f"--user-data-dir={folder}/profile",
               f"--window-size={WIDTH},{height}", *arguments]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SweepError(
            f"{browser} could not draw the page ({error}): use --format html"
        ) from error
    return done.stdout.decode("utf-8", "replace")
