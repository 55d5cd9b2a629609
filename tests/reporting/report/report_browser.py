"""Headless Chromium without a network, for the report's page."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@contextlib.contextmanager
def browser(width: int = 1200, height: int = 1000) -> Iterator[Any]:
    """A browser whose network is cut off, with a profile of its own."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (
            "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
            "--disable-background-networking", "--disable-component-update",
            "--disable-dev-shm-usage", f"--window-size={width},{height}",
            f"--user-data-dir={profile}",
        ):  # fmt: skip
            options.add_argument(flag)
        service = webdriver.ChromeService(executable_path=DRIVER)
        running = webdriver.Chrome(options=options, service=service)
        try:
            running.execute_cdp_cmd("Network.enable", {})
            running.execute_cdp_cmd(
                "Network.emulateNetworkConditions",
                {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0},
            )
            yield running
        finally:
            running.quit()
