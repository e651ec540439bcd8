"""A proxy for the internet in the environment, which reaches nothing on this machine; pinned:

- neither our own Ray head nor a server on loopback is asked through it, in the command, in the job and in what `doctor` asks
- nobody is told that our head runs
- what is in `no_proxy` already stays there
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tau2rl import settings
from tau2rl.settings import child_environment
from tests.stubs.http import Request, Response, StubServer
from tests.stubs.openai import OpenAIStub

pytestmark = pytest.mark.e2e
CLOUDS = {"169.254.169.254", "metadata.google.internal"}  # where Ray's dashboard looks whose machine this is


class Proxy(StubServer):
    """Answers 503 to everything; `traffic.others` holds what it was asked."""

    async def reply(self, request: Request, mode: str) -> Response:
        return Response(status=503, raw=b"<html>no route</html>", content_type="text/html")


def tau2rl(proxy: Proxy, *arguments: str) -> subprocess.CompletedProcess[str]:
    names = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    environment = child_environment(dict.fromkeys(names, proxy.url))
    kept = {k: v for k, v in environment.items() if k.lower() != "no_proxy" and not k.startswith("RAY_ADDRESS")}
    command = [sys.executable, "-m", "tau2rl", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=kept, check=False)


def answer(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
    return (
        "Thank you.\n###STOP###" if "created" in str(messages[-1]["content"]) else "Please create `Important Meeting` for user_1."
    )


def test_nothing_on_this_machine_is_asked_through_a_proxy(tmp_path: Path) -> None:
    small = ["--domains", "mock", "--task-split", "base", "--num-samples", "1", "--concurrency", "1", "--policy", "gold"]
    chosen = ["--set", "tasks.ids=[create_task_1]", "--protocol", "transcript", "--output", str(tmp_path / "run"), "--json"]
    with Proxy() as proxy, OpenAIStub(answer=answer) as server:
        user = ["--user-model", "openai/stub", "--set", f"user.api_base={server.api_base}"]
        done = tau2rl(proxy, "eval", *small, *chosen, *user)
        asked = tau2rl(proxy, "doctor", "--json", *user)
        assert server.requests
        # `GET http://HOST:PORT/PATH` and `CONNECT HOST:PORT`
        hosts = {urlsplit(r.path if "//" in r.path else f"//{r.path}").hostname for r in proxy.traffic.others}
        assert not hosts & set(settings.LOOPBACK)
        assert hosts <= CLOUDS
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["episodes"]["failed"] == 0
    checks = {check["name"]: check["state"] for check in json.loads(asked.stdout)["checks"]}
    assert checks["user simulator"] == "ok"


@pytest.mark.parametrize(
    ("lower", "upper", "wanted"),
    [
        (None, None, "127.0.0.1,localhost,::1"),
        ("lab.example", None, "lab.example,127.0.0.1,localhost,::1"),
        (None, ".corp, localhost", ".corp,localhost,127.0.0.1,::1"),
        ("a", "b", "a,b,127.0.0.1,localhost,::1"),
        ("*", None, "*"),
    ],
)
def test_what_needs_no_proxy_already_stays_so(
    lower: str | None, upper: str | None, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("no_proxy", lower), ("NO_PROXY", upper)):
        monkeypatch.setenv(name, value or "")
    settings.loopback_without_proxy()
    environment = child_environment()
    assert environment["no_proxy"] == wanted
    assert environment["NO_PROXY"] == ("" if wanted == "*" else wanted)
