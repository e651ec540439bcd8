"""What models, users, tools and servers write may be anything; no command that shows or hands on a run obeys it. Pinned here:

- script tags, ANSI and OSC escapes, C1 controls, right-to-left overrides, NUL, halves of surrogates, in what was said, in
  arguments of calls, in results, failures and the run's own name: none of them reaches stdout or stderr raw, whatever command;
  pages and Markdown have them as text; files are UTF-8
- a message of 10 MB takes seconds and no screens; a line that is no UTF-8 is named, and the rest is shown
- what a person types in a search may be hostile too
- the gates of `blame` look through the beginning of a message, however long it is
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tau2rl.cli import app
from tau2rl.runs import records
from tau2rl.types import EpisodeRecord, Failure, Fault, Status, StopReason

runner = CliRunner()
ACTS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)> \x1b]0;owned\x07\x1b[2J\x9b31m \u202egnp.exe\u2066 \x00 =cmd()|'x'!A1 "
    "[link](javascript:alert(3)) [bold red]rich[/bold red] ``` | **b**\n---\nlicense: evil"
)
PLAYED = ["eval", "--inline", "--policy", "gold", "--user-model", "scripted", "--protocol", "transcript", "--domains", "mock"]
LONG = 10_000_000


def tau2rl(*words: object, code: int = 0) -> Any:
    result = runner.invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output[:2000]
    assert not ACTS.findall(result.output)
    return result


def poisoned(record: EpisodeRecord, *, more: str = "") -> EpisodeRecord:
    """With hostile text wherever a model, a user or a tool writes."""
    episode, half = record.episode, "\ud83d"
    trajectory = tuple(
        {**message, "content": f"{message.get('content') or ''}{HOSTILE}{half}{more if number == 1 else ''}"}
        | ({"tool_calls": [call | {"arguments": {**call["arguments"], HOSTILE: HOSTILE}} for call in message["tool_calls"]]}
           if message.get("tool_calls") else {})
        for number, message in enumerate(episode.trajectory)
    )  # fmt: skip
    messages = tuple(
        replace(
            message,
            content=message.content + HOSTILE + more * (number == 1),
            tool_calls=tuple(replace(call, arguments={**call.arguments, "x": HOSTILE}) for call in message.tool_calls),
        )
        for number, message in enumerate(episode.messages)
    )
    return replace(record, episode=replace(episode, trajectory=trajectory, messages=messages))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which everything is hostile: one message of 10 MB, a FAILED attempt with the words of a server."""
    folder = tmp_path_factory.mktemp("hostile") / "outputs" / "eval" / "x"
    tau2rl(*PLAYED, "--task-split", "synth-train", "--limit", "4", "--num-samples", "2", "--output", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "name": HOSTILE.replace("\0", "").replace("/", "")}))
    kept = list(records.read_records(folder / "episodes.jsonl"))
    lines = [records.encode(poisoned(record, more="y" * LONG if record is kept[0] else "")) for record in kept[:-1]]
    (folder / "episodes.jsonl").write_bytes(b"".join(lines))
    last = poisoned(kept[-1])
    failure = Failure(fault=Fault.USER, kind="UserSimulatorFailure", message=HOSTILE)
    episode = replace(last.episode, status=Status.FAILED, stop_reason=StopReason.FAILED, grade=None, failure=failure)
    (folder / "failures.jsonl").write_bytes(records.encode(replace(last, episode=episode, score=None)))
    return folder


def task_of(run: Path) -> str:
    return next(records.read_records(run / "episodes.jsonl")).attempt.task.key


def test_no_command_that_shows_a_run_obeys_it(run: Path, tmp_path: Path) -> None:
    task = task_of(run)
    other = shutil.copytree(run, tmp_path / "other")
    one = ["show", run, task, "--attempt", 0]
    for words in (["show", run], one, [*one, "--whole"], [*one, "--tokens"], ["report", run], ["compare", run, other, "--force"],
                  ["blame", run], ["runs", "list", run.parents[1]], ["config", "show", "-c", run / "config.json"]):  # fmt: skip
        shown = tau2rl(*words)
        assert len(shown.output) < 300_000
    assert "<script>alert(1)</script>" in tau2rl(*one).stdout
    assert "[bold red]rich[/bold red]" in tau2rl(*one).stdout  # no markup of ours either
    for words in (["show", run, "--json"], [*one, "--json"], ["report", run, "--json"], ["blame", run, "--json"]):
        json.loads(tau2rl(*words).stdout)


def test_no_file_that_is_handed_on_acts(run: Path, tmp_path: Path) -> None:
    tau2rl("report", run, "--html", tmp_path / "report.html")
    tau2rl("report", run, "--md", tmp_path / "report.md")
    for layout in ("tau2", "trl", "hf", "atif"):
        tau2rl("export", run, "--to", layout, "--output", tmp_path / layout)
    tau2rl("data", "card", tmp_path / "trl" / "synth-train.jsonl", "--output", tmp_path / "rows.md")
    tau2rl("import", tmp_path / "tau2" / "mock.json", "--output", tmp_path / "back", code=1)  # the FAILED attempt is not in it
    files = [file for file in tmp_path.rglob("*") if file.suffix in (".html", ".md", ".json", ".jsonl")]
    assert len(files) >= 9
    for file in files:
        text = file.read_bytes().decode()  # raises where it is no UTF-8
        assert not re.search(r"[\x00-\x08\x0b-\x1f]", text), file
        if file.suffix in (".html", ".md"):
            assert not ACTS.findall(text), file
            spoken = re.sub("`[^`]*`", "", text) if file.suffix == ".md" else text  # a command in Markdown is code
            assert not re.search(r"(?<!\\)<(?:script>alert|img src=x)", spoken), file
        else:
            for line in text.split("\n") if file.suffix == ".jsonl" else [text]:
                json.loads(line or "null")
    assert not re.search(r"^license: evil", (tmp_path / "hf" / "README.md").read_text("utf-8"), re.MULTILINE)


def test_a_line_that_is_no_utf8_is_named_and_the_rest_is_shown(run: Path, tmp_path: Path) -> None:
    torn = tmp_path / "torn"
    torn.mkdir()
    for name in ("config.json", "environment.json"):
        (torn / name).write_bytes((run / name).read_bytes())
    lines = (run / "episodes.jsonl").read_bytes().splitlines(keepends=True)[1:]
    (torn / "episodes.jsonl").write_bytes(
        lines[0] + lines[1].replace(b"script", b"scri\xff\xfe\x00t") + lines[2] + lines[3][:500]
    )
    shown = tau2rl("show", torn, "--json")
    assert json.loads(shown.stdout)["total"] == 2
    assert "1 line cannot be read as a record of this version" in shown.stderr
    refused = tau2rl("export", torn, "--to", "atif", code=2)
    assert "line 2: not an episode record" in refused.stderr
    assert "UnicodeDecodeError" not in refused.stderr


@pytest.mark.parametrize("typed", [HOSTILE, "\udcff\udc80", '"', "a\0b", "NEAR(", "*"])
def test_a_search_may_be_hostile_too(run: Path, typed: str) -> None:
    tau2rl("show", run, "--text", typed)
    tau2rl("show", run, typed)
    tau2rl("show", run, "--domain", typed, "--json")
    assert "no such layout" in tau2rl("export", run, "--to", typed, code=2).stderr
