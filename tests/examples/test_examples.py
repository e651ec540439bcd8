"""The examples do what they say, found by the command in the directory where it is given, with nothing of ours changed.

- each is at most 60 lines, and docs/library.md shows it, word for word
- the policy, in a real Ray job with a worker process, on the domain: references and plug-ins resolve in all of them
- two policies of one's own can be compared: they are who is measured
- the reward term adds its share to the score; a weight by which a failure could win is refused
- gold through the codec solves what gold solves, and its records have the codec's own tokens
- the sink gets the numbers of a training
- the backend trains: the model that it leaves is the run's and can be played; what it refuses is refused
- the verifier chooses among attempts; the environment is played by `rollout`
- the script says what it found; every name that docs/library.md calls public is
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tau2rl as public

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
MOCK = ("--domains", "mock", "--task-split", "base", "--user-model", "scripted")
ONE = (*MOCK, "--set", "tasks.ids=[create_task_1]", "--num-samples", "1")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The directory of somebody who has the examples in it, as a package of their own."""
    shutil.copytree(ROOT / "examples", tmp_path / "my_pkg", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def tau2rl(here: Path, *words: str, code: int = 0, **variables: str) -> str:
    """The command as a subprocess; what it said on stderr. `-P`: as the installed command, it does not look where it is given."""
    command = [sys.executable, "-P", "-m", "tau2rl", *words]
    environment = {**os.environ, "PYTHONPATH": "", **variables}
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stderr
    return done.stderr


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_short_and_the_documentation_shows_it(example: Path) -> None:
    text = example.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    indented = "".join(f"    {line}".rstrip() + "\n" for line in text.splitlines())
    assert indented in (ROOT / "docs" / "library.md").read_text(encoding="utf-8")


@pytest.mark.e2e
def test_a_policy_and_a_domain_reach_the_job_and_its_workers(here: Path) -> None:
    policy = ("--policy", "my_pkg.echo:Echo", "--protocol", "transcript", "--set", "policy.options={prefix: 'You said: '}")
    domain = ("--domains", "lamp", "--set", "plugins=[my_pkg.lamp_domain]", "--user-model", "scripted", "--num-samples", "1")
    tau2rl(here, "eval", *policy, *domain, "--set", "rollout.workers=1", "--output", "run")
    (record,) = lines(here / "run" / "episodes.jsonl")
    said = [m["content"] for m in record["episode"]["messages"] if m["role"] == "assistant"]
    assert said[1] == "You said: Switch the lamp on."
    assert record["episode"]["worker_cpu_seconds"] > 0
    identity = json.loads((here / "run" / "environment.json").read_text())["identity"]
    assert set(identity["plugins"]["policy.kind"]) == {"my_pkg.echo:Echo"}
    assert set(identity["plugins"]["plugins"]) == {"my_pkg.lamp_domain"}
    assert identity["agent"] == "my_pkg.echo:Echo"


def test_gold_solves_the_domain_of_ones_own(here: Path) -> None:
    gold = ("--policy", "gold", "--protocol", "transcript", "--set", "plugins=[my_pkg.lamp_domain]", "--user-model", "scripted")
    tau2rl(here, "eval", "--inline", *gold, "--domains", "lamp", "--task-split", "base", "--output", "run")
    report = json.loads((here / "run" / "report.json").read_text())
    assert report["overall"]["pass@1"]["value"] == 1.0
    assert report["floor_by_domain"]["lamp"]["do_nothing"] == 0.0


def test_two_policies_of_ones_own_can_be_compared(here: Path) -> None:
    for prefix in ("a", "b"):
        given = ("--policy", "my_pkg.echo:Echo", "--protocol", "transcript", "--set", f"policy.options={{prefix: {prefix}}}")
        tau2rl(here, "eval", "--inline", *given, *ONE, "--output", prefix)
    (here / "my_pkg" / "echo.py").rename(here / "my_pkg" / "other.py")
    other = ("--policy", "my_pkg.other:Echo", "--protocol", "transcript")
    tau2rl(here, "eval", "--inline", *other, *ONE, "--output", "c")
    tau2rl(here, "compare", "a", "b")
    tau2rl(here, "compare", "a", "c")


def test_a_reward_term_adds_its_share(here: Path) -> None:
    gold = ("--policy", "gold", "--protocol", "transcript", "--set", "reward.preset=outcome")
    term = "reward.terms=[{{fn: 'my_pkg.brevity:brevity', weight: {}}}]"
    tau2rl(here, "eval", "--inline", *gold, *ONE, "--set", term.format(0.1), "--output", "run")
    (record,) = lines(here / "run" / "episodes.jsonl")
    share = 0.1 * (1 - len(record["episode"]["turns"]) / 20)
    assert record["score"]["components"]["my_pkg.brevity:brevity"] == pytest.approx(share)
    assert record["score"]["shaped"] == pytest.approx(1 + share)
    refused = tau2rl(here, "eval", "--inline", *gold, *ONE, "--set", term.format(1.0), "--output", "other", code=2)
    assert "a failure can score as much as a success" in refused
    assert not (here / "other").exists()


def test_gold_speaks_through_a_codec_of_ones_own(here: Path) -> None:
    codec = ("--protocol", "my_pkg.plain_codec:PlainCodec", "--tokenizer", "bytes")
    tau2rl(here, "eval", "--inline", "--policy", "gold", *codec, *ONE, "--output", "run")
    (record,) = lines(here / "run" / "episodes.jsonl")
    assert record["episode"]["grade"]["reward"] == 1.0
    text = bytes(record["episode"]["token_ids"]).decode()
    assert '\nassistant: call: {"name": "create_task", "arguments": {' in text


def test_a_sink_gets_the_numbers_of_a_training(here: Path) -> None:
    row = {"messages": [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Good day."}]}
    (here / "rows.jsonl").write_text(json.dumps(row) + "\n")
    tiny = ("local.shape.hidden=16", "local.shape.layers=1", "local.shape.heads=1", "local.shape.head_dim=16")
    given = ("tracking.sinks=['my_pkg.csv_sink:CsvSink']", "data.val_fraction=0", "train.batch_size=1", *tiny)
    sets = [word for setting in given for word in ("--set", setting)]
    tau2rl(here, "sft", "--inline", "--data", "rows.jsonl", "--steps", "2", *sets, "--output", "run")
    with (here / "run" / "curves.csv").open(newline="") as file:
        rows = {(step, name): float(value) for step, name, value in csv.reader(file)}
    written = {(str(n["step"]), name): n[name] for n in lines(here / "run" / "metrics.jsonl") for name in n if name != "step"}
    assert rows == {key: value for key, value in written.items() if value is not None}
    assert {step for step, _ in rows} == {"1", "2"}


def test_a_backend_of_ones_own_trains_a_step_of_the_chain(here: Path) -> None:
    row = {"messages": [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Good day."}]}
    (here / "chat.jsonl").write_text(json.dumps(row) + "\n")
    tiny = ("local.shape.hidden=16", "local.shape.layers=1", "local.shape.heads=1", "local.shape.head_dim=16")
    sets = [word for setting in ("data.val_fraction=0", *tiny) for word in ("--set", setting)]
    tau2rl(here, "sft", "--inline", "--data", "chat.jsonl", "--steps", "1", *sets, "--output", "start")
    start = "start/checkpoints/final"
    tau2rl(here, "seed", "--inline", *ONE, "--protocol", "native", "--tokenizer", start, "--output", "seed")
    mine = ("--backend", "my_pkg.plain_sft:PlainSft", "--model", start, "--set", "train.lr=1e-3", "--set", "data.val_fraction=0")
    given = (*mine, "--data", "seed/rows.jsonl", "--steps", "3")
    tau2rl(here, "sft", "--inline", *given, "--output", "run")
    report = json.loads((here / "run" / "report.json").read_text())
    assert report["backend"] == "my_pkg.plain_sft:PlainSft" and report["training"]["steps"] == 3
    assert report["outputs"]["checkpoint"]["sha256"] != report["inputs"]["parent"]["sha256"]
    identity = json.loads((here / "run" / "environment.json").read_text())["identity"]
    assert set(identity["plugins"]["backend"]) == {"my_pkg.plain_sft:PlainSft"}
    limits = ("--set", "limits.max_turns=1", "--set", "limits.context_tokens=4096")
    played = ("--policy", "local", "--set", "policy.checkpoint=run/checkpoints/final", "--set", "policy.sampling.max_tokens=4")
    tau2rl(here, "eval", "--inline", *played, *ONE, *limits, "--output", "eval")
    assert len(lines(here / "eval" / "episodes.jsonl")) == 1
    refused = tau2rl(here, "grpo", "--inline", *mine[:4], *ONE[:2], "--user-model", "scripted", "--output", "other", code=2)
    assert "knows no reinforcement learning" in refused
    assert "no backend `my_pkg.plain_sft:Plain`" in tau2rl(
        here, "sft", "--inline", *given[2:], "--backend", "my_pkg.plain_sft:Plain", code=2
    )


def test_a_verifier_of_ones_own_chooses(here: Path) -> None:
    gold = ("--policy", "gold", "--protocol", "transcript", "--num-samples", "2")
    tau2rl(here, "eval", "--inline", *gold, *MOCK, "--set", "tasks.ids=[create_task_1,update_task_1]", "--output", "run")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tau2rl", "select", "run", "--verifier", "my_pkg.polite:Polite", "--json"],
        cwd=here, capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert list(found["verifiers"]) == ["my_pkg.polite:Polite"] and found["k"] == 2


def test_an_environment_of_ones_own_is_played(here: Path) -> None:
    done = subprocess.run(
        [sys.executable, "my_pkg/guess_env.py"], cwd=here, capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.strip() == "completed 2 turns, reward 1.0"


def test_what_the_documentation_calls_public_is() -> None:
    table = (ROOT / "docs" / "library.md").read_text(encoding="utf-8").partition("## Public names")[2].partition("## ")[0]
    rows = [line.split("|")[2] for line in table.splitlines() if line.startswith("|")][2:]
    names = {name for row in rows for name in re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", row))}
    listed = set(public.__all__) - {"__version__"}
    assert names <= listed, names - listed
    assert listed <= names, listed - names


def test_the_script_evaluates_a_policy(here: Path) -> None:
    done = subprocess.run(
        [sys.executable, "my_pkg/evaluate.py"], cwd=here, capture_output=True, text=True, timeout=300, check=True
    )
    assert "mock/create_task_1#1 completed 1.0" in done.stdout
    assert "pass@1 0.5 95% (0.0945" in done.stdout
    assert "assistant: ['create_task']" in done.stdout
    assert sorted(path.name for path in here.iterdir()) == ["my_pkg"]  # no run folder


def test_pythonpath_is_searched_too(here: Path) -> None:
    elsewhere = here / "elsewhere"
    elsewhere.mkdir()
    (here / "my_pkg").rename(elsewhere / "my_pkg")
    words = ("eval", "--inline", "--policy", "my_pkg.echo:Echo", "--protocol", "transcript", *ONE, "--output", "run")
    assert "there is no module `my_pkg`" in tau2rl(here, *words, code=2)
    tau2rl(here, *words, PYTHONPATH=str(elsewhere))
    assert len(lines(here / "run" / "episodes.jsonl")) == 1
