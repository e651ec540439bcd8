"""`tau2rl top`, pinned here on folders as runs leave them, and on a run that is carried out:

- `--once` prints one frame of a finished, an incomplete, a running, a killed run, of one whose last line is cut, of a pipeline;
- success with its interval, episodes in flight, loads of servers while it goes on, curves, alarms, last warnings and episodes;
- nothing in a record or a log reaches the terminal as a command to it, nor the dashboard as markup;
- the dashboard follows what is appended, keeps its cursor, and opens a conversation; without a terminal it is refused.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shlex
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tau2rl.cli import app
from tau2rl.errors import UserError
from tau2rl.runs.records import encode
from tau2rl.runs.sessions import RunLock
from tau2rl.view.top import Watch
from tests.unit.policy.test_sglang_load import engine, rank
from tests.viewing import HOSTILE, append, make_pipeline, make_run, record

ROOT = Path(__file__).parents[3]
runner = CliRunner()
textual = pytest.mark.skipif(importlib.util.find_spec("textual") is None, reason="the extra `top` is not installed")


def once(run: Path) -> str:
    result = runner.invoke(app, ["top", str(run), "--once"])
    assert result.exit_code == 0, result.output
    assert not [c for c in result.stdout if (c < " " and c != "\n") or "\x7f" <= c <= "\x9f" or "\u202a" <= c <= "\u202e"]
    return result.stdout


def begun(run: Path, *, log: str = "", **event: Any) -> Path:
    """The run with a session that said `event` last."""
    session = run / "logs" / "session_1"
    session.mkdir(parents=True)
    (run / "logs" / "lock").touch()
    (session / "job.log").write_text(log, encoding="utf-8")
    if event:
        (session / "progress.json").write_text(json.dumps(event))
    (session / "timing.json").write_text('{"seconds": null}')  # as a process that is killed leaves it
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Attempts 0 (solved), 1 (not), 2 (FAILED) at one task, and 0 at another with hostile text."""
    return make_run(tmp_path / "outputs" / "eval" / "a")


def training(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"stage": "grpo", "name": "t"}')
    steps = [{"step": n, "success": n / 4, "train/entropy": None, "alarm/loops": float(n >= 3), "x": 1.0} for n in (1, 2, 3, 4)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps) + '{"step": 5, "succ')
    return folder


def test_a_run_that_was_carried_out(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = f"eval -c {ROOT}/configs/eval/gold.yaml --inline --domains mock --task-split base --limit 2 --output {out}"
    made = runner.invoke(app, shlex.split(words))
    assert made.exit_code == 0, made.output
    frame = once(out)
    assert "gold  eval  finished" in frame
    assert "progress  2/2 episodes, success 1.000 (2/2)" in frame and "in flight" not in frame
    assert "pass@1 1.000 [0.342, 1.000], 2 of 2 attempts at 2 tasks, floor " in frame
    assert all("completed" in line for line in frame.splitlines()[-2:])


def test_a_long_name_stands_in_one_line(run: Path) -> None:
    episodes = run / "episodes.jsonl"
    first = json.loads(episodes.read_text("utf-8").splitlines()[0])["attempt"]["task"]["task_id"]
    long = "[mms_issue]" + "|".join(f"problem_{number}" for number in range(12)) + "[PERSONA:Hard]"
    episodes.write_text(episodes.read_text("utf-8").replace(f'"{first}"', f'"{long}"'), "utf-8")
    head, *rows = once(run).partition("\n\n")[2].splitlines()
    assert any("mms_issue" in row and "…" in row and "PERSONA:Hard]#" in row for row in rows)
    assert all(row[head.index("result") :].split()[0] in ("completed", "failed", "truncated", "malformed") for row in rows)


def test_how_a_run_stands(run: Path) -> None:
    assert "eval  incomplete; `--resume` goes on" in once(run)  # records without a session: it was brought here
    begun(run, done=3, total=9, seconds=60.0, in_flight=2)
    assert "eval  cut off; `--resume` goes on" in once(run)
    assert "3/9 episodes\n" in once(run)  # its process was killed, and its episodes with it
    lock = RunLock(run / "logs" / "lock")
    try:
        frame = once(run)
        assert "eval  running  " in frame and "progress  3/9 episodes, 2:00 left, 2 in flight" in frame
    finally:
        lock.close()
    (run / "logs" / "session_1" / "timing.json").write_text('{"seconds": 3.5}')
    assert "eval  incomplete" in once(run)
    (run / "report.json").write_text('{"schema": 2, "stage": "eval", "incomplete": false}')
    assert "eval  finished" in once(run)


def test_a_look_lets_a_run_begin(run: Path) -> None:
    begun(run)
    once(run)
    RunLock(run / "logs" / "lock", patience_seconds=0).close()


def test_success_and_the_last_episodes(run: Path) -> None:
    frame = once(run)
    assert "pass@1 0.250 [" in frame and "1 of 3 attempts at 2 tasks" in frame  # the means 1/2 and 0 of two tasks
    listed = frame.partition("\n\n")[2].splitlines()
    assert listed[0].split() == ["episode", "result", "reward", "turns", "tokens", "seconds", "ended", "by", "fault"]
    assert listed[1].split()[:3] == ["mock/create_task_1#2", "failed", "-"] and listed[1].endswith("user")
    assert len(listed) == 5
    append(run, encode(record(3))[:100])  # a run that is being written, or a disk that was full
    assert once(run).partition("\n\n")[2].splitlines() == listed


def test_curves_and_alarms_of_a_training(tmp_path: Path) -> None:
    frame = once(training(tmp_path / "t"))
    (curve,) = [line for line in frame.splitlines() if line.startswith("curves")]
    assert curve.split() == ["curves", "success", "▁▃▆█", "0.25", "->", "1"]
    assert "alarms    loops since step 3" in frame


def test_the_last_warnings_of_its_log(run: Path) -> None:
    told = [f"2026-01-01T00:00:0{n}Z {level} tau2rl.train: {text}"
            for n, (level, text) in enumerate([("WARNING", "old"), ("INFO", "fine"), ("ERROR", "one"), ("WARNING", "two"),
                                               ("WARNING", f"step 3, alarm `loops`: {HOSTILE}")])]  # fmt: skip
    begun(run, log="\n".join([*told, "Traceback (most recent call last):", "  WARNING of a library"]) + "\n")
    frame = once(run)
    assert "ERROR tau2rl.train: one" in frame and "two" in frame and "alarm `loops`: <script>" in frame
    assert "old" not in frame and "fine" not in frame and "library" not in frame


def test_a_pipeline_shows_its_stages_and_follows_the_last(tmp_path: Path) -> None:
    frame = once(make_pipeline(tmp_path / "p"))
    assert "03-after-eval  eval  finished" in frame
    assert "pipeline  01-before-eval finished, pass@1 0.000" in frame
    assert "02-grpo finished, reward 0.250" in frame


def test_servers_are_asked_while_the_run_goes_on(tmp_path: Path) -> None:
    with engine(rank(8, 2, 0.5)) as policy:
        out = make_run(tmp_path / "a")
        config = {"stage": "eval", "name": "a", "policy": {"kind": "sglang", "url": policy.url}, "chat": {"tokenizer": "bytes"},
                  "user": {"kind": "scripted"}}  # fmt: skip
        (out / "config.json").write_text(json.dumps(config))
        begun(out)
        assert "servers   " not in once(out) and policy.requests == []
        lock = RunLock(out / "logs" / "lock")
        try:
            assert "servers   policy: 8 running, 2 waiting, 50% of its KV memory" in once(out)
        finally:
            lock.close()


def test_gpus_of_this_machine(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\necho '0, 93, 61440, 81920'\necho '1, [N/A], 1, 81920'\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert "GPUs      0:  93% busy, 60.0 of 80.0 GiB\n" in once(run)
    command.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed' >&2\nexit 9\n")
    assert "GPUs" not in once(run)


def test_a_folder_that_is_no_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    assert runner.invoke(app, ["top", str(tmp_path), "--once"]).exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_without_a_terminal_there_is_no_dashboard(run: Path) -> None:
    result = runner.invoke(app, ["top", str(run)])
    assert result.exit_code == 2 and f"`tau2rl top {run} --once` prints one frame" in result.stderr
    assert "is not a folder" in runner.invoke(app, ["top", str(run / "no")]).stderr


# --- the dashboard ---


def dashboard(run: Path, use: Callable[[Any, Any], Awaitable[None]]) -> None:
    from tau2rl.cli.dashboard import Dashboard

    async def inside() -> None:
        screen = Dashboard(Watch(run, episodes=100), every=1000.0)
        async with screen.run_test(size=(120, 40)) as pilot:
            await pilot.pause()
            await use(screen, pilot)

    asyncio.run(inside())


def told(screen: Any) -> str:
    return str(screen.query_one("#text").render())


@textual
def test_the_dashboard_follows_a_run_and_keeps_its_cursor(run: Path) -> None:
    async def use(screen: Any, pilot: Any) -> None:
        assert "incomplete" in told(screen) and screen.table.row_count == 4
        await pilot.press("j")
        chosen = screen.table.get_row_at(1)
        append(run, encode(record(3)) + encode(record(4)))
        (run / "report.json").write_text('{"schema": 2, "stage": "eval", "incomplete": false}')
        await pilot.press("r")
        await pilot.pause()
        assert "finished" in told(screen) and screen.table.row_count == 6
        assert screen.table.get_row_at(screen.table.cursor_row) == chosen
        assert str(screen.table.get_row_at(0)[0]) == "mock/create_task_1#4"

    dashboard(run, use)


@textual
def test_a_conversation_is_opened_and_nothing_in_it_acts(run: Path) -> None:
    (run / "failures.jsonl").unlink()
    append(run, encode(record(9, says=f"{HOSTILE} [bold red]not markup[/] [@click=app.quit]here[/]")))

    async def use(screen: Any, pilot: Any) -> None:
        assert str(screen.table.get_row_at(0)[0]) == "mock/create_task_1#9"
        await pilot.press("enter")
        await pilot.pause()
        text = str(screen.screen.query_one("#conversation Static").render())
        assert "[bold red]not markup[/] [@click=app.quit]here[/]" in text and "<script>" in text
        assert "\x1b" not in text and "\u202e" not in text
        await pilot.press("escape")
        await pilot.pause()
        assert len(screen.screen_stack) == 1
        await pilot.press("q")

    dashboard(run, use)


@textual
def test_the_dashboard_outlives_a_folder_that_goes_away(run: Path) -> None:
    async def use(screen: Any, pilot: Any) -> None:
        (run / "episodes.jsonl").unlink()
        (run / "failures.jsonl").unlink()
        await pilot.press("r")
        await pilot.pause()
        assert screen.is_running

    dashboard(run, use)


def test_a_watch_goes_on_to_the_next_run_of_a_pipeline(tmp_path: Path) -> None:
    pipeline = make_pipeline(tmp_path / "p")

    async def inside() -> None:
        watch = Watch(pipeline, episodes=3)
        assert (await watch.frame()).name == "03-after-eval"
        make_run(pipeline / "runs" / "04-more")
        frame = await watch.frame()
        assert (frame.name, len(frame.episodes), len(frame.pipeline)) == ("a<b>", 3, 4)
        await watch.aclose()
        await watch.aclose()

    asyncio.run(inside())
    with pytest.raises(UserError, match="not a run folder"):
        Watch(tmp_path, episodes=1)
