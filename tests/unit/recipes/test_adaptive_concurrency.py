"""Adaptive concurrency and scheduling of a run, pinned here:

- the number in flight follows the server by default where there is one; asked for where there is none, or in training, it is
  refused;
- it begins with 32 episodes for each engine, and polls them while the run plays;
- a server with room gets more episodes while those in flight still play: none has to end for that;
- a server that says nothing is named once, and its failures count all the same;
- a whole run over a server with a queue plays every attempt once, with the seeds of its plan, and says how far it went;
- the actions of both sides make a reference path long.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tau2rl.chat import make_codec
from tau2rl.config import ChatConfig, EvalConfig, GrpoConfig, RftConfig, SeedConfig, build
from tau2rl.errors import UserError
from tau2rl.recipes.eval import run as evaluate
from tau2rl.recipes.play import reference_length
from tau2rl.rollouts import concurrency
from tau2rl.rollouts.concurrency import AdaptiveConcurrency, adaptive_concurrency
from tau2rl.rollouts.runner import plan_attempts
from tau2rl.runs.folder import RunFolder
from tau2rl.types import Say, TaskRef
from tests.stubs.http import Request, Response
from tests.stubs.sglang import SGLangStub

SERVED = {"kind": "sglang", "url": "http://127.0.0.1:1"}
NATIVE = {"protocol": "native", "tokenizer": "bytes"}
GOOD_BYE = make_codec(ChatConfig(protocol="native", tokenizer="bytes")).write((Say(text="Good bye."),))


TASKS = ("create_task_1", "update_task_1", "update_task_with_message_history")


class Engine(SGLangStub):
    """A server with `places`: whoever is beyond them is in its queue, as it says at `/v1/loads`."""

    def __init__(self, places: int, **options: Any) -> None:
        super().__init__(answer=lambda ids, params: GOOD_BYE, context=10**7, **options)
        self.places = places

    async def reply(self, request: Request, mode: str) -> Response:
        if request.path != "/v1/loads":
            return await super().reply(request, mode)
        now = self.traffic.in_flight
        load = {"num_running_reqs": min(now, self.places), "num_waiting_reqs": max(0, now - self.places), "token_usage": 0.3}
        return Response(payload={"loads": [{"dp_rank": 0, **load}]})


class Queue(Engine):
    """A server that answers nobody before `seen`: its queue is full until somebody has drawn a consequence from it."""

    def __init__(self, places: int, seen: Callable[[], bool]) -> None:
        super().__init__(places)
        self._seen = seen

    async def reply(self, request: Request, mode: str) -> Response:
        while request.path == "/generate" and not self._seen():
            await asyncio.sleep(0.005)
        return await super().reply(request, mode)


class Router(SGLangStub):
    """Lists its engines, as sglang-router does."""

    tells_load = False

    def __init__(self, *engines: Engine) -> None:
        super().__init__()
        self.engines = engines

    async def reply(self, request: Request, mode: str) -> Response:
        if request.path != "/workers":
            return await super().reply(request, mode)
        return Response(payload={"workers": [{"id": e.url, "url": e.url} for e in self.engines]})


class Crowd(Engine):
    """A server with room for all, which answers nobody before forty ask at once."""

    async def reply(self, request: Request, mode: str) -> Response:
        while request.path == "/generate" and self.max_in_flight < 40:
            await asyncio.sleep(0.005)
        return await super().reply(request, mode)


def evaluation(url: str, **rollout: Any) -> EvalConfig:
    return build(
        EvalConfig,
        {
            "tasks": {"domains": ["mock"], "split": "base"},
            "policy": {"kind": "sglang", "url": url, "retries": 0},
            "chat": NATIVE,
            "user": {"kind": "scripted", "max_stalled_turns": 4},
            "limits": {"context_tokens": 1_000_000},
            "rollout": {"num_samples": 6, "retries": 0, **rollout},
        },
    )


def test_it_follows_the_servers_where_there_are_any() -> None:
    assert build(EvalConfig, {"policy": SERVED, "chat": NATIVE}).adaptive
    assert build(EvalConfig, {"policy": {"kind": "api", "model": "x"}, "chat": {"protocol": "transcript"}}).adaptive
    assert not build(EvalConfig, {"policy": SERVED, "chat": NATIVE, "rollout": {"adaptive": False}}).adaptive
    assert not SeedConfig().adaptive


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (SeedConfig, {}),
        (RftConfig, {"policy": {"kind": "local", "checkpoint": "x"}, "chat": NATIVE}),
        (GrpoConfig, {"model": {"init": "x"}, "backend": "local"}),
        (GrpoConfig, {"model": {"init": "x"}, "backend": "slime"}),
    ],
)
def test_asked_for_where_there_is_no_server_it_is_refused(kind: Any, values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="adaptive"):
        build(kind, {**values, "rollout": {"adaptive": True}})


@pytest.mark.parametrize(("kind", "values"), [(SeedConfig, {}), (GrpoConfig, {"model": {"init": "x"}, "backend": "local"})])
def test_a_limit_of_workers_without_workers_is_refused(kind: Any, values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"rollout\.worker_memory_gb has no effect while rollout\.workers is 0"):
        build(kind, {**values, "rollout": {"worker_memory_gb": 2.0}})


def opened(config: EvalConfig) -> tuple[int | None, str]:
    """The limit to begin with, and what is said in the end."""

    async def inside() -> tuple[int | None, str]:
        async with adaptive_concurrency(config) as control:
            return (None, "") if control is None else (control.limit, str(control))

    return asyncio.run(inside())


def test_it_begins_with_the_same_for_each_engine(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Engine(8) as a, Engine(8) as b, Router(a, b) as router:
        assert opened(evaluation(router.url, concurrency=500))[0] == 64
        assert opened(evaluation(a.url, concurrency=500))[0] == 32
        assert opened(evaluation(a.url, concurrency=5))[0] == 5
    assert "the load of 2 engines is known: at most 64 episodes in flight to begin with" in caplog.text


def test_a_server_that_says_nothing_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Router() as server:
        assert opened(evaluation(server.url, concurrency=500))[0] == 500
    assert caplog.text.count("nobody tells the load of the server") == 1


def test_polling_sees_a_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concurrency, "POLL_SECONDS", 0.001)

    async def inside(url: str) -> AdaptiveConcurrency:
        async with adaptive_concurrency(evaluation(url, concurrency=10)) as control:
            assert control is not None
            control.in_flight = 10
            while not control.cuts:
                await asyncio.sleep(0.001)
            return control

    with Engine(4) as server:
        server.traffic.in_flight = 10
        assert asyncio.run(asyncio.wait_for(inside(server.url), 60)).limit == 7


def played(config: EvalConfig, folder: Path) -> list[tuple[str, int]]:
    """The attempts that a run has, with their seeds."""
    with RunFolder.open(RunFolder.create(folder, config, resume=config.resume)) as run:
        evaluate(config, run, lambda event: None)
        return [(record.attempt.key, record.attempt.seed) for record in run.records()]


def test_a_run_plays_its_plan_whatever_the_order_and_the_number_in_flight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(concurrency, "POLL_SECONDS", 0.002)
    caplog.set_level(logging.INFO)
    with Queue(2, seen=lambda: "in flight from now on" in caplog.text) as server:
        config = evaluation(server.url, concurrency=16, num_samples=12)
        had = played(config.model_copy(update={"tasks": config.tasks.model_copy(update={"ids": TASKS})}), tmp_path / "run")
    refs = [TaskRef(domain="mock", task_id=name, split="base") for name in TASKS]
    assert len(had) == 36
    assert set(had) == {(a.key, a.seed) for a in plan_attempts(refs, num_samples=12, seed=config.seed)}
    said = next(line for line in caplog.text.splitlines() if "allowed to begin with" in line)
    assert "16 allowed to begin with, 16 at most" in said
    assert "cut 0 times" not in said


def test_a_server_with_room_gets_more_while_those_in_flight_still_play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concurrency, "POLL_SECONDS", 0.01)
    with Crowd(200) as server:
        config = evaluation(server.url, concurrency=60, num_samples=20)
        had = played(config.model_copy(update={"tasks": config.tasks.model_copy(update={"ids": TASKS})}), tmp_path / "run")
        assert server.max_in_flight >= 40
    assert len(had) == len(set(had)) == 60


def test_the_reference_path_is_counted_on_both_sides() -> None:
    assert reference_length(TaskRef(domain="mock", task_id="create_task_1", split="base")) == 1
    assert reference_length(TaskRef(domain="mock", task_id="update_task_with_history_and_env_assertions", split="base")) == 0
