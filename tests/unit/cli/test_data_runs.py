"""Whole runs of `tau2rl seed` and `tau2rl rft-filter`, in this process and on real environments, pinned here:

- seed writes what was solved, or everything, as OpenAI messages that read back; a row says where it comes from;
- the rows are the same bytes whatever the concurrency, and a resumed run writes them again;
- rft-filter samples, or takes the episodes of earlier runs: only successes stay, every other attempt is named with its reason;
- its tokens are the sampled ones: they are what the messages give when they are written by the chat template, and the mask
  covers exactly what the agent wrote; turns that could not be read are not learned;
- in the cookbook's protocol rows are system, user and assistant messages with calls as text;
- tasks that are kept for tests are refused, as are sources that speak different protocols;
- the real domains give demonstrations that tau2 grades 1;
- an option sets its own setting.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tau2rl.chat.tokenizers import ByteTokenizer
from tau2rl.cli import app
from tau2rl.data.rows import exact_sample, read_row

runner = CliRunner()
MOCK = ["--domains", "mock", "--task-split", "synth-train"]
NATIVE = ["--protocol", "native", "--tokenizer", "bytes"]


def run(*arguments: str, code: int = 0) -> dict[str, Any]:
    """The report that a run in this process prints."""
    result = runner.invoke(app, [*arguments, "--inline", "--json"])
    assert result.exit_code == code, result.stderr
    return json.loads(result.stdout) if result.stdout else {"error": result.stderr}


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def test_demonstrations_are_conversations_that_were_graded(tmp_path: Path) -> None:
    report = run("seed", *MOCK, "--limit", "7", "--output", str(tmp_path))
    assert (report["tried"], report["solved"], report["kept"], report["coverage"]) == (7, 7, 7, 1.0)
    assert report["floor"] == {"mock": {"do_nothing": 0.0, "always_transfer": 0.0}}
    found = rows(tmp_path / "rows.jsonl")
    assert report["files"]["rows.jsonl"]["rows"] == len(found) == 7
    first = found[0]
    assert first["metadata"]["task_id"].startswith("synth-train-0000-")
    assert (first["metadata"]["reward"], first["metadata"]["policy"]) == (1.0, "gold")
    assert first["metadata"]["digest"] == report["digest"]
    assert {tool["function"]["name"] for tool in first["tools"]} >= {"create_task", "update_task_status"}
    read = read_row(first, name="row")
    assert [m.role for m in read.messages][:3] == ["system", "assistant", "user"]
    assert "token_ids" not in first  # the transcript has no tokens of any model


def test_a_teacher_who_slips_can_be_kept_whole_or_filtered(tmp_path: Path) -> None:
    whole = run("seed", *MOCK, "--limit", "30", "--noise-prob", "0.5", "--keep", "all", "--output", str(tmp_path / "all"))
    assert 0 < whole["solved"] < whole["kept"] == 30
    solved = run("seed", *MOCK, "--limit", "30", "--noise-prob", "0.5", "--output", str(tmp_path / "solved"))
    assert solved["kept"] == solved["solved"] == whole["solved"]
    assert solved["dropped"] == {"not solved": 30 - solved["kept"]}


def test_rows_do_not_depend_on_what_ended_first_and_a_resumed_run_writes_them_again(tmp_path: Path) -> None:
    alone = run("seed", *MOCK, "--limit", "9", "--concurrency", "1", "--output", str(tmp_path / "a"))
    many = run("seed", *MOCK, "--limit", "9", "--concurrency", "9", "--output", str(tmp_path / "b"))
    assert alone["files"] == many["files"]
    (tmp_path / "b" / "rows.jsonl").unlink()
    assert run("seed", *MOCK, "--limit", "9", "--output", str(tmp_path / "b"), "--resume")["files"] == many["files"]


def test_the_filter_keeps_successes_of_an_earlier_run_with_their_tokens(tmp_path: Path) -> None:
    seed = run(
        "seed", *MOCK, *NATIVE, "--limit", "20", "--num-samples", "2", "--noise-prob", "0.5", "--output", str(tmp_path / "seed")
    )
    report = run("rft-filter", "--from", str(tmp_path / "seed"), "--output", str(tmp_path / "rft"))
    kept, dropped = rows(tmp_path / "rft" / "sft.jsonl"), rows(tmp_path / "rft" / "dropped.jsonl")
    assert report["tried"] == len(kept) + len(dropped) == 40
    assert 0 < len(kept) <= seed["solved"] < 40
    assert {row["metadata"]["reward"] for row in kept} == {1.0}
    assert {row["reason"] for row in dropped} <= {"not solved", "same actions as another"}
    assert report["sources"][0]["digest"] == seed["digest"]
    assert report["dropped"] == {reason: sum(d["reason"] == reason for d in dropped) for reason in report["dropped"]}
    covered = {row["metadata"]["task_id"] for row in kept}
    assert report["coverage"] == pytest.approx(len(covered) / 20, abs=1e-4)


def test_the_tokens_are_those_that_the_messages_give(tmp_path: Path) -> None:
    from tau2rl.chat.tokenizers import load_tokenizer
    from tau2rl.data.encoding import encode_rows

    gold = ["--policy", "gold", "--user-model", "scripted"]
    report = run("rft-filter", *MOCK, *NATIVE, *gold, "--limit", "7", "--num-samples", "2", "--output", str(tmp_path))
    assert report["dropped"] == {"same actions as another": 7}  # gold does the same each time
    kept = rows(tmp_path / "sft.jsonl")
    messages = [{key: value for key, value in row.items() if key not in ("token_ids", "loss_mask")} for row in kept]
    named = [(row["metadata"]["id"], row) for row in messages]
    encoded = encode_rows(named, load_tokenizer("bytes"), max_tokens=10**6)
    exact = [exact_sample(row) for row in kept]
    assert len(exact) == 7 and not encoded.dropped
    for row, sample, again in zip(kept, exact, encoded.samples, strict=True):
        assert sample is not None
        assert (sample.token_ids, sample.loss_mask) == (again.token_ids, again.loss_mask)
        spans = [ByteTokenizer().decode(sample.token_ids[start:end]) for start, end in sample.turn_spans]
        turns = [m for m in row["messages"][2:] if m["role"] == "assistant"]
        assert len(spans) == len(turns)
        assert all(m["content"] in text for m, text in zip(turns, spans, strict=True))


def test_the_cookbook_has_its_calls_as_text(tmp_path: Path) -> None:
    run("seed", *MOCK, "--protocol", "cookbook", "--tokenizer", "bytes", "--limit", "3", "--output", str(tmp_path))
    for row in rows(tmp_path / "rows.jsonl"):
        assert [m["role"] for m in row["messages"]][:2] == ["system", "user"]
        assert {m["role"] for m in row["messages"]} == {"system", "user", "assistant"}
        assert row["tools"] == [] and "create_task" in row["messages"][0]["content"]
        assert all(m["content"].startswith("<tool_call>\n") for m in row["messages"] if m["role"] == "assistant")


@pytest.mark.parametrize("command", [["seed"], ["rft-filter", *NATIVE, "--policy", "gold", "--user-model", "scripted"]])
def test_tasks_that_are_kept_for_tests_are_refused(command: list[str], tmp_path: Path) -> None:
    words = ["--domains", "mock", "--task-split", "synth-test", "--limit", "2", "--output"]
    refused = run(*command, *words, str(tmp_path / "a"), code=2)
    assert "2 of the tasks are kept for tests" in refused["error"]
    accepted = run(*command, *words, str(tmp_path / "b"), "--set", "allow_held_out=true", "--num-samples", "1")
    assert accepted["kept"] == 2


def test_the_filter_refuses_what_it_cannot_mix(tmp_path: Path) -> None:
    words = [
        "seed",
        "--domains",
        "mock",
        "--task-split",
        "synth-test",
        "--limit",
        "2",
        "--set",
        "allow_held_out=true",
        "--output",
    ]
    run(*words, str(tmp_path / "a"))
    run(*words, str(tmp_path / "b"), *NATIVE)
    held_out = run("rft-filter", "--from", str(tmp_path / "a"), "--output", str(tmp_path / "c"), code=2)
    assert "2 episodes of the sources are on tasks that are kept for tests" in held_out["error"]
    both = ["--from", str(tmp_path / "a"), "--from", str(tmp_path / "b")]
    assert "different chat protocols" in run("rft-filter", *both, "--output", str(tmp_path / "d"), code=2)["error"]
    nothing = run("rft-filter", "--from", str(tmp_path / "none"), "--output", str(tmp_path / "e"), code=2)
    assert f"there is no `{tmp_path / 'none'}`" in nothing["error"]


@pytest.mark.oracle
@pytest.mark.parametrize("domain", ["airline", "retail", "telecom"])
def test_a_real_domain_gives_demonstrations(domain: str, tmp_path: Path) -> None:
    report = run("seed", "--domains", domain, "--limit", "2", "--output", str(tmp_path))
    assert (report["tried"], report["kept"]) == (2, 2)
    for row in rows(tmp_path / "rows.jsonl"):
        assert row["metadata"]["split"] == "train"
        assert row["metadata"]["reward"] == 1.0
        assert read_row(row, name="row").messages[-1].role == "user"


def test_the_table_says_what_was_kept(tmp_path: Path) -> None:
    result = runner.invoke(app, ["seed", *MOCK, "--limit", "2", "--output", str(tmp_path), "--inline"])
    assert result.exit_code == 0, result.stderr
    line = next(line.split() for line in result.stdout.splitlines() if line.split()[:1] == ["mock"])
    assert line == ["mock", "2", "2", "2", "2", "2", "0.000"]
    assert "rows.jsonl: 2 rows, sha256 " in result.stdout


@pytest.mark.parametrize(
    ("arguments", "path", "value"),
    [
        (["rft-filter", "--per-task", "3"], ("keep", "per_task"), 3),
        (["rft-filter", "--per-kind", "9"], ("keep", "per_kind"), 9),
        (["rft-filter", "--per-domain", "9"], ("keep", "per_domain"), 9),
        (["rft-filter", "--partial-backoff", "0.6"], ("keep", "partial_backoff"), 0.6),
        (["rft-filter", "--no-dedupe"], ("keep", "dedupe"), False),
        (["rft-filter", "--exclude-no-op"], ("keep", "exclude_no_op"), True),
        (["rft-filter", "--from", "a", "--from", "b"], ("sources",), ["a", "b"]),
        (["rft-filter"], ("policy", "sampling", "temperature"), 0.8),
        (["rft-filter", "--set", "policy.retries=1"], ("policy", "sampling", "temperature"), 0.8),
        (["rft-filter"], ("keep", "partial_backoff"), None),
        (["seed", "--keep", "all"], ("keep",), "all"),
        (["seed"], ("tasks", "split"), "train"),
        (["seed"], ("user", "kind"), "scripted"),
        (["seed", "--user-model", "m"], ("user", "model"), "m"),
    ],
)
def test_an_option_sets_its_own_setting(arguments: list[str], path: tuple[str, ...], value: object) -> None:
    command, *options = arguments
    chat = () if "--from" in options else NATIVE  # what was played already needs none
    result = runner.invoke(app, [command, *chat, *options, "--dry-run", "--json"], env={"RAY_ADDRESS": "http://cluster"})
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)["config"]
    for name in path:
        found = found[name]
    assert found == value


def test_slips_belong_to_the_gold_teacher_of_synthesised_tasks() -> None:
    result = runner.invoke(app, ["seed", "--domains", "retail", "--noise-prob", "0.3", "--dry-run"])
    assert result.exit_code == 2
    assert "noise_prob has no effect while tasks.split is `train`: it is the gold teacher's" in result.stderr
