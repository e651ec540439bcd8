"""`sglang-router`, the real one, in front of engines of a test.

    with Router() as router, SGLangStub() as engine, router.over(engine.url):
        policy = SGLangPolicy(PolicyConfig(url=router.url))

It runs as a process of its own on a free port of 127.0.0.1, with the policy that docs/scale.md tells to use.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

PACKAGE = "sglang_router"
START_SECONDS = 60.0


class Router:
    """Runs from `with` to the end of its block."""

    def __init__(self, log: Path, *options: str) -> None:
        """`options` are those of `sglang_router.launch_router`."""
        self.port, metrics = free_port(), free_port()
        self._log = log
        self._command = [sys.executable, "-m", f"{PACKAGE}.launch_router", "--policy", "manual", "--host", "127.0.0.1"]
        self._command += ["--port", str(self.port), "--prometheus-port", str(metrics), "--log-level", "warn", *options]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Router:
        with self._log.open("wb") as out:
            self._process = subprocess.Popen(self._command, stdout=out, stderr=out)
        self._wait(lambda: self._ask("GET", "/health") is not None)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    @contextmanager
    def over(self, *engines: str) -> Generator[None, None, None]:
        """These engines stand behind the router until the end of the block; not those that do not listen.

        (The router would try to reach such a one for minutes, and add no other meanwhile.)
        """
        here = {url for url in engines if _listens(url)}
        for url in here:
            self._ask("POST", "/workers", {"url": url})
        self._wait(lambda: {worker["url"] for worker in self.workers() if worker["is_healthy"]} == here)
        yield
        for worker in self.workers():
            self._ask("DELETE", f"/workers/{worker['id']}")
        self._wait(lambda: not self.workers())

    def workers(self) -> Sequence[dict[str, Any]]:
        """What the router says of its engines: `url`, `is_healthy`, ..."""
        return (self._ask("GET", "/workers") or {"workers": []})["workers"]

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON of the answer, True for another one; None for a refusal, or no answer."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5) as response:
                said = response.read()
        except (HTTPError, OSError):
            return None
        return json.loads(said) if said.startswith(b"{") else True

    def _wait(self, true: Any) -> None:
        began = time.monotonic()
        while not true():
            if time.monotonic() - began > START_SECONDS or self._process.poll() is not None:
                raise TimeoutError(f"the router: {self._log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.01)


def free_port() -> int:
    """A port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _listens(url: str) -> bool:
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0
