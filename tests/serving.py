"""`tau2rl serve` in this process: its application behind a real port, in a thread, for the real clients of other people.

with serving(Turns(server, VerifierPool(scorers), k=3, temperature=1.0), server) as served:
openai.OpenAI(base_url=served.url, api_key=served.key)
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn

from tau2rl.config import PolicyConfig
from tau2rl.env.sandbox import Sandbox
from tau2rl.serve.app import Answers, Limits, make_app
from tau2rl.serve.candidates import PolicyServer
from tau2rl.serve.choice import VerifierPool
from tau2rl.serve.conversations import Conversations
from tau2rl.serve.turns import Turns
from tau2rl.verify.verifiers import scorers
from tests.stubs.openai import OpenAIStub

KEY = "sk-of-the-test"


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Where it listens."""

    port: int
    key: str = KEY

    @property
    def url(self) -> str:
        """The base URL for clients."""
        return f"http://127.0.0.1:{self.port}/v1"


def wait_until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    """Until it is; an AssertionError when it takes that long."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


@contextlib.contextmanager
def serving(answers: Answers, server: PolicyServer, **limits: Any) -> Iterator[Served]:
    """Until the end of the block."""
    bounds = Limits(**{"body_bytes": 2**20, "at_once": 64, "seconds": 30.0, **limits})
    app = make_app(answers, server, model="tau2rl", key=KEY, limits=bounds)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        running = uvicorn.Server(uvicorn.Config(app, log_level="critical", access_log=False))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not running.started:
            time.sleep(0.005)
        try:
            yield Served(port=listener.getsockname()[1])
        finally:
            running.should_exit = True
            thread.join()


def policy(stub: OpenAIStub, *, logprobs: bool = False, **values: Any) -> PolicyServer:
    """The policy server that a stub is."""
    given: dict[str, Any] = {"model": "openai/stub", "api_base": stub.api_base, "timeout_seconds": 10.0, **values}
    return PolicyServer(PolicyConfig(kind="api", **given), logprobs=logprobs)


@contextlib.contextmanager
def turns(
    stub: OpenAIStub, *, k: int = 3, verifiers: tuple[str, ...] = ("rules", "consistency"), pool: VerifierPool | None = None,
    **limits: Any,
) -> Iterator[Served]:  # fmt: skip
    """Choice of the next message in front of a stub; `pool` stands in for the verifiers of these names."""
    server = policy(stub, logprobs="logprob" in verifiers)
    with serving(Turns(server, pool or VerifierPool(scorers(verifiers)), k=k, temperature=1.0), server, **limits) as served:
        yield served


@contextlib.contextmanager
def conversations(
    stub: OpenAIStub, sandbox: Sandbox | None = None, *, k: int = 3, verifiers: tuple[str, ...] = ("rules", "consistency"),
    max_calls: int = 10, **limits: Any,
) -> Iterator[tuple[Served, Sandbox]]:  # fmt: skip
    """Choice of answers in front of a stub, in the sandbox of `mock`."""
    server, made = policy(stub), sandbox or Sandbox("mock")
    answers = Conversations(server, VerifierPool(scorers(verifiers)), made, k=k, temperature=1.0, max_calls=max_calls)
    with serving(answers, server, **limits) as served:
        yield served, made
