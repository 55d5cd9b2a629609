"""Makes the pictures of the README in docs/pictures/: a search on a terminal, its report, and
MLflow's page of it.

    python docs/make_pictures.py

Takes a minute. Needs chromium and chromedriver, and what the tests need.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.text import Text
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

PICTURES = Path(__file__).with_name("pictures")
ROWS, COLUMNS = 22, 100
SEARCH = ("run", "--trials", "50")
STUDY = "digits-mlp"
PATIENCE_S = 180
LEAN = {"MLFLOW_WORKERS": "1", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
IN_THE_WAY = "[data-component-id='mlflow.assistant.chat_panel.close']"
"""MLflow's assistant, which covers a quarter of the page."""
NEXT_FRAME = re.compile(r"\r\x1b\[2K(?:\x1b\[1A\x1b\[2K)+")
"""rich goes back to the first line of a frame before it draws the next one."""


def main() -> None:
    """Search once in a new folder, and take every picture of that."""
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        live_table(Path(folder))
        report_page(Path(folder))
        with mlflow_page(Path(folder)) as address:
            photograph(address, "best_val_acc", PICTURES / "mlflow.png")


def live_table(folder: Path) -> None:
    """The live table in the middle of a search, as an SVG."""
    frames = NEXT_FRAME.split(on_a_terminal(folder, *SEARCH))
    running = [frame for frame in frames if "running" in frame][1:]
    # The one that shows most: as many different curves as there are.
    best = max(running, key=lambda frame: len(set(re.findall("[▁-█]{6,}", frame))))
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), color_system="truecolor")
    console.print(Text.from_ansi(best))
    svg = console.export_svg(title=f"sweep {' '.join(SEARCH)}")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # nothing from a network
    (PICTURES / "live-table.svg").write_text(svg, encoding="utf-8")


def on_a_terminal(folder: Path, *arguments: str) -> str:
    """All that `sweep` writes to a terminal."""
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    env = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LINES")}
    with subprocess.Popen(
        [sys.executable, "-m", "sweep", *arguments], cwd=folder, stdin=end, stdout=end,
        stderr=end, env=env | {"TERM": "xterm-256color"},
    ):  # fmt: skip
        os.close(end)
        written = b""
        with contextlib.suppress(OSError):  # the terminal ends with its last process
            while piece := os.read(terminal, 65536):
                written += piece
    os.close(terminal)
    return written.decode().replace("\r\n", "\n")


def report_page(folder: Path) -> None:
    """The top of `sweep report STUDY`."""
    command = [sys.executable, "-m", "sweep", "report", STUDY, "--no-samples", "-o", "page.html"]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    page = (folder / "page.html").as_uri()
    photograph(page, "What came out", PICTURES / "report.png", "1200,1000")


@contextlib.contextmanager
def mlflow_page(folder: Path) -> Iterator[str]:
    """`sweep ui STUDY`; yields the address that it says."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "sweep", "ui", STUDY, "--no-open", "--port", port]
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=os.environ | LEAN, start_new_session=True,
    ) as server:  # fmt: skip
        assert server.stdout is not None
        try:
            page = server.stdout.readline().split()[3]
            wait_for(page)
            yield page
        finally:
            os.killpg(server.pid, signal.SIGKILL)


def wait_for(address: str) -> None:
    """Wait until a server answers."""
    for _ in range(PATIENCE_S):
        with contextlib.suppress(OSError):
            urllib.request.urlopen(address, timeout=5).close()
            return
        time.sleep(1)
    raise SystemExit(f"{address} does not answer")


def photograph(address: str, text: str, picture: Path, size: str = "1300,900") -> None:
    """A page in headless Chromium as a PNG, once it shows `text`."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", f"--window-size={size}"):
        options.add_argument(flag)
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    browser = webdriver.Chrome(options=options, service=service)
    try:
        browser.get(address)
        wait = WebDriverWait(browser, PATIENCE_S)
        wait.until(lambda page: text in page.find_element("tag name", "body").text)
        time.sleep(2)  # it is drawn
        for button in browser.find_elements("css selector", IN_THE_WAY):
            button.click()
        time.sleep(2)
        browser.save_screenshot(str(picture))
    finally:
        browser.quit()


if __name__ == "__main__":
    main()
