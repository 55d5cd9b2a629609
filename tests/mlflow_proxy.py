"""An HTTP proxy before a real MLflow server: refuses requests, loses answers, as a test says."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requests

Answer = tuple[int, str]
"""Status and body."""
Rule = Callable[[str, str], Answer | None]
"""Given the call, such as runs/create, and its body: the answer to refuse it with, or None."""


class Proxy(ThreadingHTTPServer):
    """Hands requests on, but for those that `rule` answers.

    `to_lose` counts answers that are lost on the way, by call: the server did what it was asked.
    """

    daemon_threads = True

    def __init__(self, target: str, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.target = target
        self.rule: Rule = lambda call, body: None
        self.n_refused = 0
        self.to_lose: dict[str, int] = {}
        self.address = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Proxy

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        call = self.path.rpartition("2.0/mlflow/")[2].partition("?")[0]
        refusal = self.server.rule(call, body.decode(errors="replace"))
        if refusal is not None:
            self.server.n_refused += 1
            self._answer(*refusal)
            return
        headers = {"Content-Type": self.headers.get("Content-Type", "application/json")}
        if "Authorization" in self.headers:
            headers["Authorization"] = self.headers["Authorization"]
        answer = requests.request(
            self.command, self.server.target + self.path, data=body, headers=headers, timeout=20
        )
        if self.server.to_lose.get(call, 0):
            self.server.to_lose[call] -= 1
            self.close_connection = True
            return
        self._answer(answer.status_code, answer.content)

    do_GET = do_PUT = do_PATCH = do_DELETE = do_POST  # noqa: N815 - names that http.server looks up

    def _answer(self, status: int, content: str | bytes) -> None:
        data = content.encode() if isinstance(content, str) else content
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def proxy_of(target: str, port: int = 0) -> Iterator[Proxy]:
    """A proxy before `target` while the block runs."""
    proxy = Proxy(target, port)
    thread = threading.Thread(target=proxy.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        thread.join()
        proxy.server_close()


class Door:
    """A way to a server that can be closed: nobody answers there, as where a server was killed."""

    def __init__(self, target: str) -> None:
        self._target, self._port = target, 0
        self._open = contextlib.ExitStack()
        self.open()

    def open(self) -> None:
        proxy = self._open.enter_context(proxy_of(self._target, self._port))
        self._port, self.address = proxy.server_port, proxy.address

    def close(self) -> None:
        self._open.close()


def refusing(answer: Answer, *, trial: int) -> Rule:
    """A rule that lets no run of that trial be made."""
    tag = {"key": "sweep.trial", "value": str(trial)}

    def rule(call: str, body: str) -> Answer | None:
        is_it = call == "runs/create" and tag in json.loads(body).get("tags", [])
        return answer if is_it else None

    return rule


def error(code: str) -> str:
    """A body as MLflow writes it."""
    return json.dumps({"error_code": code, "message": "refused by the proxy"})
