"""A run that is killed loses at most what was in flight, repeats nothing, and ends with the report of an unbroken run.

The command line runs as a subprocess against a stub SGLang server whose answers depend on the attempt's seed alone.

- kill -9 in the middle, then `--resume`: the same results, every attempt exactly once
- a run with other settings is not resumed; a folder with a run in it is not overwritten
- a server that dies for good ends the run as incomplete: exit code 1, headline null, and `--resume` completes it
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tau2rl.chat import make_codec
from tau2rl.config import ChatConfig
from tau2rl.settings import child_environment
from tau2rl.types import CallTool, Say
from tests.stubs.sglang import SGLangStub

CODEC = make_codec(ChatConfig(protocol="native", tokenizer="bytes"))
CREATE = CODEC.write((CallTool(name="create_task", arguments={"user_id": "user_1", "title": "Important Meeting"}),))
SAY = CODEC.write((Say(text="That is done."),))


def answer(input_ids: list[int], params: dict[str, Any]) -> list[int]:
    """Creates the task in the first turn of about half of the attempts, and only talks otherwise."""
    return CREATE if params["sampling_seed"] % 2 and len(input_ids) < 5000 else SAY


def command(server: SGLangStub, output: Path, *more: str) -> list[str]:
    settings = [
        "tasks.ids=[create_task_1,update_task_1,impossible_task_1]",
        "rollout.retries=0",
        "rollout.give_up_after=3",
        "policy.retries=0",
    ]
    sets = [part for item in settings for part in ("--set", item)]
    options = [
        "--domains",
        "mock",
        "--task-split",
        "base",
        "--url",
        server.url,
        "--tokenizer",
        "bytes",
        "--user-model",
        "scripted",
    ]
    samples = ["--num-samples", "8", "--concurrency", "2", "--output", str(output), "--inline", "--json"]
    return [sys.executable, "-m", "tau2rl", "eval", *options, *samples, *sets, *more]


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, timeout=240, env=child_environment(), check=False)


def results(report: dict[str, Any]) -> dict[str, Any]:
    """The report without its clock and without what the server's cache happened to hold."""
    tokens = {k: v for k, v in report["tokens"].items() if k != "cached"}
    return {**{k: v for k, v in report.items() if k not in ("seconds", "cost")}, "tokens": tokens}


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in file.read_text().splitlines()] if file.exists() else []


def keys(output: Path) -> Counter[str]:
    attempts = [line["attempt"] for line in lines(output / "episodes.jsonl")]
    return Counter(f"{a['task']['task_id']}#{a['index']}" for a in attempts)


def test_killed_and_resumed_gives_the_report_of_an_unbroken_run(tmp_path: Path) -> None:
    with SGLangStub(answer=answer) as server:
        unbroken = run(command(server, tmp_path / "unbroken"))
        assert unbroken.returncode == 0, unbroken.stderr
        server.latency = 0.3
        process = subprocess.Popen(
            command(server, tmp_path / "broken"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=child_environment()
        )
        deadline = time.monotonic() + 200
        while len(lines_so_far(tmp_path / "broken")) < 5:
            assert process.poll() is None and time.monotonic() < deadline, "the run ended before it could be killed"
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        before = keys_so_far(tmp_path / "broken")
        assert 5 <= len(before) < 24
        server.latency = 0.0
        resumed = run(command(server, tmp_path / "broken", "--resume"))
    assert resumed.returncode == 0, resumed.stderr
    assert results(json.loads(resumed.stdout)) == results(json.loads(unbroken.stdout))
    process_cost = json.loads(resumed.stdout)["cost"]["process"]  # the start that was killed could not say what it took
    assert (process_cost["wall_seconds"], process_cost["reason"][:6]) == (None, "1 of 2")
    after = keys(tmp_path / "broken")
    assert len(after) == 24 and set(after.values()) == {1}
    value = json.loads(resumed.stdout)["overall"]["pass@1"]["value"]
    assert 0 < value < 1  # outcomes that depend on seeds, or the comparison would say nothing


def lines_so_far(output: Path) -> list[str]:
    file = output / "episodes.jsonl"
    return file.read_text().split("\n")[:-1] if file.exists() else []


def keys_so_far(output: Path) -> set[str]:
    attempts = [json.loads(text)["attempt"] for text in lines_so_far(output)]
    return {f"{a['task']['task_id']}#{a['index']}" for a in attempts}


def test_other_settings_are_not_resumed_and_nothing_is_overwritten(tmp_path: Path) -> None:
    with SGLangStub(answer=answer) as server:
        assert run(command(server, tmp_path / "run")).returncode == 0
        again = run(command(server, tmp_path / "run"))
        assert again.returncode == 2 and "--resume" in again.stderr
        other = run(command(server, tmp_path / "run", "--resume", "--seed", "5", "--temperature", "0.1"))
    assert other.returncode == 2
    assert "seed: was 300, now 5" in other.stderr and "policy.sampling.temperature" in other.stderr
    assert "Traceback" not in other.stderr


def test_a_server_that_dies_for_good_leaves_an_incomplete_run_to_resume(tmp_path: Path) -> None:
    with SGLangStub(answer=answer, mode=["ok"] * 12 + ["500"]) as server:
        broken = run(command(server, tmp_path / "run"))
        assert broken.returncode == 1, broken.stderr
        report = json.loads(broken.stdout)
        assert report["overall"]["pass@1"]["value"] is None and report["overall"]["pass@1"]["reason"]
        assert report["incomplete"] and report["episodes"]["failed"] >= 3
        assert len(lines(tmp_path / "run" / "failures.jsonl")) == report["episodes"]["failed"]
        server.set_mode("ok")
        resumed = run(command(server, tmp_path / "run", "--resume"))
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout)["overall"]["pass@1"]["value"] is not None
    assert set(keys(tmp_path / "run").values()) == {1}


def test_a_dead_server_is_said_at_once(tmp_path: Path) -> None:
    with SGLangStub(mode="dead") as server:
        refused = run(command(server, tmp_path / "run"))
    assert refused.returncode == 2
    assert "no SGLang server answers" in refused.stderr and "hint: " in refused.stderr and "Traceback" not in refused.stderr
