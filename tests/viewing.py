"""Runs to look at, made of episodes that were really played, and a real server over them."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tau2rl.runs.records import encode, write_logprobs
from tau2rl.types import (
    Attempt,
    CallTool,
    Episode,
    EpisodeRecord,
    Failure,
    Fault,
    Message,
    Say,
    Score,
    Status,
    StopReason,
    TaskRef,
)
from tests.play import CREATE, UPDATE, play

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> \x1b]0;owned\x07\x1b[2J \u202egnp.exe \x00 =cmd()"
SAMPLED = -0.5  # log-probability of every sampled token
SOLVE = ((CallTool(name="create_task", arguments={"user_id": "user_1", "title": "Important Meeting"}),), (Say(text="Done."),))


def record(number: int, *, solved: bool = True, ref: Any = CREATE, says: str = "") -> EpisodeRecord:
    episode = _play(solved, ref)
    if says:
        message = {"role": "assistant", "content": says}
        episode = replace(episode, trajectory=(*episode.trajectory, message), messages=(Message(role="assistant", content=says),))
    score = Score(task=float(solved), partial=None, shaped=float(solved), components={"outcome": float(solved)})
    return EpisodeRecord(
        schema=1, run="r", attempt=Attempt(task=ref, index=number, seed=1), tries=1, episode=episode, score=score
    )


def with_logprobs(one: EpisodeRecord) -> EpisodeRecord:
    """The record as of a policy that gave each token the same log-probability."""
    turns = tuple(replace(turn, logprobs=(SAMPLED,) * (turn.end - turn.start)) for turn in one.episode.turns)
    return replace(one, episode=replace(one.episode, turns=turns))


def failed(number: int) -> EpisodeRecord:
    one = record(number, solved=False)
    failure = Failure(fault=Fault.USER, kind="UserSimulatorFailure", message=f"HTTP 500 {HOSTILE}")
    episode = replace(one.episode, status=Status.FAILED, stop_reason=StopReason.FAILED, grade=None, failure=failure)
    return replace(one, episode=episode, score=None)


@cache
def _play(solved: bool, ref: TaskRef) -> Episode:
    with ThreadPoolExecutor(1) as pool:  # playwright's own event loop runs in the thread of the test
        return pool.submit(play, SOLVE if solved else ((Say(text="No."),),), ref=ref).result()


def make_run(folder: Path) -> Path:
    """Attempts 0 (solved), 1 (not), 2 (FAILED) at one task, and 0 at another with hostile text."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"stage": "eval", "name": "a<b>", "chat": {"tokenizer": "bytes"}}', "utf-8")
    lines = [record(0), record(1, solved=False), record(0, solved=False, ref=UPDATE, says=HOSTILE)]
    (folder / "episodes.jsonl").write_bytes(b"".join(map(encode, lines)))
    (folder / "failures.jsonl").write_bytes(encode(failed(2)))
    return folder


def make_pipeline(folder: Path) -> Path:
    """A training between two evaluations: nothing was solved before it, two attempts at one task behind it.

    The training kept a group of two in its first step, whose tokens were a quarter of a nat likelier to the trainer.
    """
    stages = {
        "01-before-eval": ("eval", [record(0, solved=False), record(1, solved=False), record(0, solved=False, ref=UPDATE)]),
        "02-grpo": ("grpo", [with_logprobs(record(2)), with_logprobs(record(3, solved=False))]),
        "03-after-eval": ("eval", [record(0), record(1)]),
    }
    numbers = {"steps": 3, "reward_first": 0.25, "reward_last": 0.75, "useful_groups": 4, "tried_groups": 8}
    accounts: dict[str, Any] = {}
    for name, (stage, records) in stages.items():
        run = folder / "runs" / name
        run.mkdir(parents=True)
        config: dict[str, Any] = {"stage": stage, "name": name, "chat": {"tokenizer": "bytes"}}
        (run / "episodes.jsonl").write_bytes(b"".join(map(encode, records)))
        rate = 1.0 if name == "03-after-eval" else 0.0
        estimate = {"value": rate, "ci95": [max(0.0, rate - 0.5), min(1.0, rate + 0.5)]}
        report = {"schema": 2, "stage": stage, "incomplete": False}
        if stage == "eval":
            report |= {"overall": {"pass@1": estimate}, "floor": {"do_nothing": 0.0}, "attempts": 2}
        else:
            (run / "metrics.jsonl").write_text(
                "".join(f'{{"step": {n}, "success": {n / 4}, "lr": 0.5}}\n' for n in (1, 2, 3)), "utf-8"
            )
            report |= {"training": numbers}
            config |= {"model": {"init": "m"}, "rollout": {"num_samples": 2}, "train": {"tasks_per_step": 1}}
            trained = {one.attempt.key: [[SAMPLED + 0.25] * (t.end - t.start) for t in one.episode.turns] for one in records}
            write_logprobs(run, 1, trained)
        (run / "config.json").write_text(json.dumps(config), "utf-8")
        (run / "report.json").write_text(json.dumps(report), "utf-8")
        accounts[name] = {
            "stage": stage, "folder": str(run), "digest": name, "parents": [], "inputs": [], "outputs": [], "seconds": 3.0,
            "cpu_seconds": 2.0, "pass@1": estimate,
        }  # fmt: skip
    rise = {"value": 1.0, "ci95": [0.5, 1.0]}
    report = {
        "schema": 2, "stage": "pipeline", "incomplete": False, "not_done": [], "steps": {"grpo": accounts["02-grpo"]},
        "evaluations": [
            {**accounts["01-before-eval"], "model": "before", "over": None,
              "tasks": 2, "attempts": 2, "floor": 0.0, "rise": None, "cpu_seconds_to_here": 2.0},
            {**accounts["03-after-eval"], "model": "after", "over": "before",
              "tasks": 1, "attempts": 2, "floor": 0.0, "rise": rise, "cpu_seconds_to_here": 6.0},
        ],
        "chain": {"links": 2, "broken": [], "holds": True}, "cpu_seconds": 6.0,
        "cost": {"seconds": 9.0, "cpu_seconds": 6.0, "runs": {}, "tokens": {}, "env_cpu": {"seconds": None}, "episodes": 5},
    }  # fmt: skip
    (folder / "config.json").write_text('{"stage": "pipeline", "name": "laptop"}', "utf-8")
    (folder / "report.json").write_text(json.dumps(report), "utf-8")
    return folder


def append(run: Path, data: bytes) -> None:
    """Write to a run's records as a run that goes on does."""
    with (run / "episodes.jsonl").open("ab") as file:
        file.write(data)


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser, Debian's chromium through playwright. Skips, with the reason, where either is missing."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("needs Debian's chromium: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def serving(place: Path) -> Iterator[str]:
    """HOST:PORT of a real server; its pages stand below `/secret/`. Skips where the extra `view` is not installed."""
    uvicorn = pytest.importorskip("uvicorn", reason="the extra `view` is not installed")
    from tau2rl.view.server import Viewer, make_viewer

    viewer = Viewer([place])
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(make_viewer(viewer, "secret"), log_level="warning"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
        viewer.close()
