"""`tau2rl compare` and `plan`, pinned here on run folders that hold real reports and records of made-up episodes:

- pairs by task: numbers that can be worked out on paper, for pass@1, pass@k and pass^k; the power of the design beside them;
- several runs: every pair, with Holm's p-values over the pairs of a measure;
- a task that flips is named with one attempt of each run that shows it;
- runs that differ in more than the agent are refused by key; `--force` shows them all the same, with a warning;
- runs of other tasks, another chat protocol, thinking or user simulator are refused with the reason, even by force;
- incomplete runs, and what is no evaluation, are never compared;
- `plan` gives the textbook's numbers, from published passes or from runs, and reads how much repetitions differ beyond luck.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tau2rl.cli import app
from tau2rl.report.report import build_report
from tau2rl.runs.records import encode
from tau2rl.types import Attempt, Checks, Episode, EpisodeRecord, Grade, Status, StopReason, TaskRef

runner = CliRunner()
SETTINGS = {
    "policy.kind": "gold",
    "user.model": "u",
    "seed": 300,
    "chat.protocol": "native",
    "chat.thinking": "off",
    "limits.max_steps": 60,
}
IDENTITY = {"settings": SETTINGS, "bench": {"user": {"kind": "llm", "model": "u"}, "data": {"mock": {"tasks": "abc"}}}}


def record(task: str, index: int, *, solved: bool) -> EpisodeRecord:
    ref = TaskRef(domain="mock", task_id=task, split="base")
    grade = Grade(reward=float(solved), checks=Checks(db=(solved,)), reward_basis=("DB",))
    episode = Episode(
        task=ref, seed=1, status=Status.COMPLETED, stop_reason=StopReason.USER_STOP,
        token_ids=(), turns=(), messages=(), grade=grade,
    )  # fmt: skip
    return EpisodeRecord(schema=2, run="r", attempt=Attempt(task=ref, index=index, seed=1), tries=1, episode=episode, score=None)


def run_folder(path: Path, solved: str, *, identity: dict[str, Any] | None = None, missing: int = 0) -> Path:
    """A run whose tasks are the words of `solved`, their attempts `1` or `0`; `missing` tasks more were planned."""
    path.mkdir()
    records = [record(f"t{i}", j, solved=mark == "1") for i, word in enumerate(solved.split()) for j, mark in enumerate(word)]
    planned = [r.attempt for r in records] + [record(f"m{i}", 0, solved=False).attempt for i in range(missing)]
    report = build_report(records, planned=planned, floors={"mock": {"do_nothing": 0.0, "always_transfer": 0.0}}, digest="d")
    (path / "report.json").write_text(json.dumps(report), "utf-8")
    (path / "episodes.jsonl").write_bytes(b"".join(map(encode, records)))
    (path / "environment.json").write_text(json.dumps({"schema": 2, "identity": identity or IDENTITY}), "utf-8")
    (path / "config.json").write_text('{"stage": "eval", "chat": {"tokenizer": "bytes"}}', "utf-8")
    return path


def compared(*runs: Path, force: bool = False) -> Any:
    result = runner.invoke(app, ["compare", *map(str, runs), *(["--force"] if force else []), "--json"])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def planned(*words: str) -> Any:
    result = runner.invoke(app, ["plan", *words, "--json"])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_two_runs_are_compared_task_by_task(tmp_path: Path) -> None:
    a, b = run_folder(tmp_path / "a", "1 1 1 0"), run_folder(tmp_path / "b", "1 0 0 0")
    values = compared(a, b)
    assert values["differing"] == []
    assert list(values["pairs"][0]["measures"]) == ["pass@1"]  # one attempt: there is no other
    numbers = values["pairs"][0]["measures"]["pass@1"]
    assert (numbers["tasks"], numbers["a"], numbers["b"], numbers["difference"]["value"]) == (4, 0.75, 0.25, 0.5)
    assert numbers["p"] == numbers["p_holm"] == 0.25  # two tasks differ, both in favor: 2 of the 4 sign patterns tie with it
    assert numbers["mcnemar"] == {"only_a": 2, "only_b": 0, "p": 0.5, "mid_p": 0.25}
    table = runner.invoke(app, ["compare", str(a), str(b)])
    assert "+0.500" in table.stdout
    assert "4 tasks, paired; " in table.stdout


def test_pass_at_k_and_pass_hat_k_are_compared_too(tmp_path: Path) -> None:
    a, b = run_folder(tmp_path / "a", "11 10 00 10"), run_folder(tmp_path / "b", "10 10 00 00")
    found = compared(a, b)["pairs"][0]["measures"]
    assert {name: (one["a"], one["b"]) for name, one in found.items()} == {
        "pass@1": (0.5, 0.25), "pass@2": (0.75, 0.5), "pass^2": (0.25, 0.0),
    }  # fmt: skip
    assert found["pass@1"]["mcnemar"] is None
    assert found["pass@2"]["mcnemar"] == {"only_a": 1, "only_b": 0, "p": 1.0, "mid_p": 0.5}
    # Differences .5 0 0 .5: sd .2887, se .1443; with 3 degrees of freedom (3.182 + about .98) se have power 0.8.
    assert found["pass@1"]["detects"] == pytest.approx(4.2 * 0.1443, rel=0.05)


def test_several_runs_are_compared_in_pairs_with_holms_p(tmp_path: Path) -> None:
    a = run_folder(tmp_path / "a", " ".join(["1"] * 8))
    b = run_folder(tmp_path / "b", " ".join(["1"] * 2 + ["0"] * 6))
    c = run_folder(tmp_path / "c", " ".join(["0"] * 8))
    pairs = compared(a, b, c)["pairs"]
    assert [(Path(p["a"]).name, Path(p["b"]).name) for p in pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    ps = [p["measures"]["pass@1"]["p"] for p in pairs]
    assert ps == [1 / 2**6, 1 / 2**8, 1 / 2**2]
    assert [p["measures"]["pass@1"]["p_holm"] for p in pairs] == [2 * ps[0], 3 * ps[1], ps[2]]
    table = runner.invoke(app, ["compare", str(a), str(b), str(c)]).stdout
    assert "p (Holm)" in table
    assert "0.0117" in table


def test_a_flip_names_an_episode_of_each_run(tmp_path: Path) -> None:
    a, b = run_folder(tmp_path / "a", "011 000 111"), run_folder(tmp_path / "b", "100 000 011")
    flips = compared(a, b)["pairs"][0]["flips"]
    assert flips == [{"task": "mock/t0", "a": 2 / 3, "b": 1 / 3, "attempt_a": 1, "attempt_b": 1}]
    shown = runner.invoke(app, ["compare", str(a), str(b)]).stdout
    assert f"tau2rl show {a} mock/t0 --attempt 1" in shown
    assert f"tau2rl show {b} mock/t0 --attempt 1" in shown


def test_two_agents_may_be_compared(tmp_path: Path) -> None:
    subject = {"policy.kind": "local", "policy.checkpoint": "c", "chat.tokenizer": "d"}
    other = {**IDENTITY, "settings": {**SETTINGS, **subject}, "chat": "another template", "agent": "checkpoint 12ab"}
    assert compared(run_folder(tmp_path / "a", "1 0"), run_folder(tmp_path / "b", "1 1", identity=other))["differing"] == []


@pytest.mark.parametrize(
    ("identity", "key"),
    [
        ({**IDENTITY, "settings": {**SETTINGS, "limits.max_steps": 30}}, "settings.limits.max_steps: 60 and 30"),
        ({**IDENTITY, "judge": "j"}, "judge: not set and 'j'"),
    ],
)
def test_runs_of_different_measurements_are_refused_by_key(identity: dict[str, Any], key: str, tmp_path: Path) -> None:
    a, b = run_folder(tmp_path / "a", "1 0"), run_folder(tmp_path / "b", "1 1", identity=identity)
    refused = runner.invoke(app, ["compare", str(a), str(b)])
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert key in refused.stderr
    forced = runner.invoke(app, ["compare", str(a), str(b), "--force", "--json"])
    assert forced.exit_code == 0
    assert forced.stderr.startswith("warning: ")
    assert json.loads(forced.stdout)["differing"] == [key.partition(":")[0]]


def test_force_is_no_way_out_where_the_tasks_are_others(tmp_path: Path) -> None:
    other = {**IDENTITY, "settings": {**SETTINGS, "tasks.limit": 1}}
    a, b = run_folder(tmp_path / "a", "1 0"), run_folder(tmp_path / "b", "1", identity=other)
    refused = runner.invoke(app, ["compare", str(a), str(b)])
    assert refused.exit_code == 2 and "settings.tasks.limit" in refused.stderr and "--force" not in refused.stderr


@pytest.mark.parametrize(
    ("identity", "reason"),
    [
        ({**IDENTITY, "settings": {**SETTINGS, "user.model": "v"}}, "the user simulator"),
        ({**IDENTITY, "bench": {**IDENTITY["bench"], "user": {"kind": "scripted"}}}, "the user simulator"),
        ({**IDENTITY, "bench": {**IDENTITY["bench"], "data": {"mock": {"tasks": "xyz"}}}}, "the tasks and their data"),
        ({**IDENTITY, "settings": {**SETTINGS, "chat.protocol": "cookbook"}}, "the chat protocol"),
        ({**IDENTITY, "settings": {**SETTINGS, "chat.thinking": "keep"}}, "thinking"),
    ],
)
def test_rows_that_never_stand_in_one_table_do_not_by_force(identity: dict[str, Any], reason: str, tmp_path: Path) -> None:
    a, b = run_folder(tmp_path / "a", "1 0"), run_folder(tmp_path / "b", "1 1")
    c = run_folder(tmp_path / "c", "1 1", identity=identity)
    result = runner.invoke(app, ["compare", str(a), str(b), str(c), "--force"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"never stand in one table: they differ in {reason}\n" in result.stderr


def test_runs_on_different_tasks_are_refused_even_by_force(tmp_path: Path) -> None:
    a, b = run_folder(tmp_path / "a", "1 0"), run_folder(tmp_path / "b", "1 1 0")
    result = runner.invoke(app, ["compare", str(a), str(b), "--force"])
    assert result.exit_code == 2
    assert "`mock/t2`" in result.stderr


def test_an_incomplete_run_is_not_compared(tmp_path: Path) -> None:
    a, b = run_folder(tmp_path / "a", "1 0"), run_folder(tmp_path / "b", "1 1", missing=1)
    result = runner.invoke(app, ["compare", str(a), str(b)])
    assert result.exit_code == 2
    assert f"--output {b} --resume" in result.stderr


def test_what_is_no_evaluation_or_no_pair_is_not_compared(tmp_path: Path) -> None:
    a, b = run_folder(tmp_path / "a", "1 0"), run_folder(tmp_path / "b", "1 1")
    assert "name two or more" in runner.invoke(app, ["compare", str(a)]).stderr
    assert "named twice" in runner.invoke(app, ["compare", str(a), str(a)]).stderr
    (b / "report.json").write_text('{"stage": "sft", "incomplete": false}', "utf-8")
    result = runner.invoke(app, ["compare", str(a), str(b), "--force"])
    assert result.exit_code == 2
    assert "is no evaluation but a run of `sft`" in result.stderr


def test_the_plan_for_three_points() -> None:
    values = planned("--effect", "3", "--tasks", "278")
    by_attempts = {one["attempts"]: one for one in values["designs"]}
    # 2 x .1509 / 8 is the variance of a task's difference; (1.960 + .842)^2 of it / .03^2 = 329 tasks, and the t distribution
    assert by_attempts[8]["tasks"] == pytest.approx(331, abs=3)
    assert by_attempts[8]["episodes"] == 2 * 8 * by_attempts[8]["tasks"]
    assert by_attempts[4]["power"] == pytest.approx(0.44, abs=0.02)  # published
    shown = runner.invoke(app, ["plan", "--effect", "3", "--tasks", "278"])
    assert shown.exit_code == 0
    assert "power with 278" in shown.stdout


def test_a_plan_from_runs_and_one_that_needs_repetitions(tmp_path: Path) -> None:
    a, b = run_folder(tmp_path / "a", "11 10 10 11"), run_folder(tmp_path / "b", "10 10 11 00")
    values = planned("--effect", "10", "--like", str(a), "--like", str(b), "--run-sd", "8", "--repetitions", "1,30")
    # c (n - c) / (n (n - 1)) is 1/2 where one of two attempts succeeds: 2 of 4 tasks in either run
    assert values["luck"] == pytest.approx(0.25)
    # Differences .5 0 -.5 1 have the variance .4167, of which luck makes .25.
    assert values["effect_sd"] == pytest.approx((0.4167 - 0.25) ** 0.5, abs=0.001)
    needed = {(one["attempts"], one["repetitions"]): one["tasks"] for one in values["designs"]}
    assert needed[16, 1] is None
    assert needed[16, 30] is not None
    assert "no number of tasks is enough" in runner.invoke(app, ["plan", "--effect", "3", "--run-sd", "8"]).stdout


def test_a_plan_reads_how_much_repetitions_differ(tmp_path: Path) -> None:
    a, b = run_folder(tmp_path / "a", "11 10 10 11"), run_folder(tmp_path / "b", "10 10 11 00")
    for run, sd, luck in ((a, 0.05, 0.03), (b, 0.02, 0.04)):
        report = json.loads((run / "report.json").read_text("utf-8"))
        overall = {"pass@1": [0.5, 0.6, 0.5], "sd": sd, "sd_by_attempts": luck}
        repeated = {"count": 3, "overall": overall, "by_domain": {}}
        (run / "report.json").write_text(json.dumps({**report, "repetitions": repeated}), "utf-8")
    assert planned("--effect", "10", "--like", str(a))["run_sd"] == pytest.approx(0.04)  # 5 points, of which luck makes 3
    both = planned("--effect", "10", "--like", str(a), "--like", str(b))
    assert both["run_sd"] == pytest.approx(((0.05**2 - 0.03**2 + 0.02**2 - 0.04**2) / 2) ** 0.5)
    assert planned("--effect", "10", "--like", str(b))["run_sd"] == 0  # luck makes more than they differ
    assert planned("--effect", "10", "--like", str(a), "--run-sd", "7")["run_sd"] == pytest.approx(0.07)
    assert "the last is of 3 repetitions" in runner.invoke(app, ["plan", "--effect", "10", "--like", str(a)]).stdout


@pytest.mark.parametrize("words", [["--attempts", "four"], ["--attempts", "0"], ["--passes", "0.5"], ["--repetitions", ""]])
def test_a_plan_that_cannot_be_read_is_refused(words: list[str]) -> None:
    result = runner.invoke(app, ["plan", "--effect", "3", *words])
    assert result.exit_code == 2
    assert "hint: such as" in result.stderr
