"""`tau2rl synth profile` and what it steers, on runs of the command line; pinned here:

- a profile counts graded attempts, and puts each task where its pass rate says; few attempts say nothing;
- `grpo` begins with its evidence and draws what it sets aside by the floor alone, until one of its groups ends otherwise; the
  profile's digest is part of the run's identity, its place is not (slime: `tests/contract/test_slime_data_source.py`);
- a profile of other tasks, one that was changed, and one that leaves nothing to train on are refused;
- runs of two policies, or on two files, make no profile;
- `eval` says pass@k by cell of writes x reads of made tasks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tau2rl.cli import app
from tau2rl.config import CurriculumConfig, GrpoConfig, ShapeConfig, build
from tau2rl.data.task_sampling import TaskSampler, weight
from tau2rl.env.tasks import training_profile, training_tasks
from tau2rl.errors import UserError
from tau2rl.runs.files import read_json
from tau2rl.train.tiny import create_tiny

runner = CliRunner()
SHAPE = ShapeConfig(hidden=16, layers=1, heads=1, head_dim=16, intermediate=32, vocab_size=300)
HELLO = [{"role": "system", "content": "Help."}, {"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi!"}]
MOCK = ("--domains", "mock", "--task-split", "synth-train", "--user-model", "scripted", "--protocol", "transcript", "--inline")


def tau2rl(*words: object, code: int = 0) -> Any:
    result = runner.invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four attempts at each of eight tasks by a teacher who gets half of the changes wrong."""
    run = tmp_path_factory.mktemp("runs") / "teacher"
    noise = ("--noise-prob", "0.5", "--keep", "all", "--num-samples", 4, "--limit", 8)
    tau2rl("seed", *MOCK, *noise, "--output", run, "--seed", 2)
    return run


@pytest.fixture(scope="module")
def profile(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("profile") / "profile.json"
    tau2rl("synth", "profile", teacher, "--output", file)
    return file


def grpo_settings(**curriculum: Any) -> dict[str, Any]:
    return {
        "model": {"init": "start"},
        "tasks": {"domains": ["mock"], "split": "synth-train", "limit": 8},
        "user": {"kind": "scripted"},
        "algo": {"curriculum": curriculum},
    }


def test_a_profile_says_how_often_each_task_was_solved(teacher: Path, profile: Path) -> None:
    tasks: dict[str, dict[str, Any]] = read_json(profile)["tasks"]
    solved: dict[str, list[float]] = {}
    for line in (teacher / "episodes.jsonl").read_text("utf-8").splitlines():
        episode = json.loads(line)["episode"]
        solved.setdefault(f"mock/{episode['task']['task_id']}", []).append(episode["grade"]["reward"])
    assert {key: (task["solved"], task["valid"]) for key, task in tasks.items()} == {
        key: (sum(rewards), 4) for key, rewards in solved.items()
    }
    words = {0: "never", 1: "hard", 2: "medium", 3: "easy", 4: "always"}
    assert {key: task["bucket"] for key, task in tasks.items()} == {key: words[int(sum(one))] for key, one in solved.items()}
    assert len({task["bucket"] for task in tasks.values()}) >= 3  # the teacher is neither good nor bad at all of them


def test_few_attempts_say_nothing_and_runs_count_together(teacher: Path, tmp_path: Path) -> None:
    few = json.loads(tau2rl("synth", "profile", teacher, "--output", tmp_path / "a", "--min-attempts", 5, "--json").stdout)
    assert few["buckets"]["unknown"] == 8
    again = tmp_path / "again"
    noise = ("--noise-prob", "0.5", "--keep", "all", "--num-samples", 4, "--limit", 8)
    tau2rl("seed", *MOCK, *noise, "--output", again, "--seed", 3)
    both = json.loads(
        tau2rl("synth", "profile", teacher, again, "--output", tmp_path / "b", "--min-attempts", 5, "--json").stdout
    )
    assert {task["valid"] for task in both["tasks"].values()} == {8} and both["buckets"]["unknown"] == 0


def test_the_sampler_begins_with_the_profile(profile: Path) -> None:
    config = build(GrpoConfig, grpo_settings(profile=str(profile)))
    assert config.algo.curriculum.enabled  # a profile switches it on
    tasks, _ = training_tasks(config)
    known = read_json(profile)["tasks"]
    sampler = TaskSampler([task.key for task in tasks], config.algo.curriculum, group_size=4, seed=1)
    assert sampler.known.evidence == {key: (task["solved"], task["valid"]) for key, task in known.items()}
    spec = sampler._spec
    assert spec is not None
    floor = config.algo.curriculum.floor
    for key, task in known.items():
        assert (weight(sampler.known, key, spec) == floor) == (task["bucket"] in ("always", "never")), task
    aside, end = next((key, task["bucket"] == "always") for key, task in known.items() if task["bucket"] in ("always", "never"))
    sampler.observe({aside: [end] * 4})
    assert weight(sampler.known, aside, spec) == floor
    sampler.observe({aside: [not end, end, end, end]})
    assert weight(sampler.known, aside, spec) > floor
    plain = TaskSampler(["mock/other"], CurriculumConfig(enabled=True), group_size=4, seed=1)
    assert plain.known.evidence == {}


def test_a_training_stands_on_its_profile(profile: Path, tmp_path: Path) -> None:
    create_tiny([("a", {"messages": HELLO})], SHAPE, tmp_path / "start", seed=0)
    config = grpo_settings(profile=str(profile)) | {
        "model": {"init": str(tmp_path / "start")},
        "sampling": {"max_tokens": 4},
        "limits": {"max_turns": 1, "context_tokens": 4000, "repairs": 0},
        "reward": {"preset": "outcome"},
        "rollout": {"num_samples": 2, "retries": 0, "keep": True},
        "train": {"steps": 2, "tasks_per_step": 2},
    }
    (tmp_path / "grpo.json").write_text(json.dumps(config), "utf-8")
    tau2rl("grpo", "-c", tmp_path / "grpo.json", "--inline", "--output", tmp_path / "run")
    identity = read_json(tmp_path / "run" / "environment.json")["identity"]
    assert identity["profile"] == read_json(profile)["digest"]
    assert "algo.curriculum.profile" not in identity["settings"] and identity["settings"]["algo.curriculum.enabled"] is True
    known = read_json(profile)["tasks"]
    played = {json.loads(line)["attempt"]["task"]["task_id"] for line in (tmp_path / "run" / "episodes.jsonl").open()}
    assert {known[f"mock/{id}"]["bucket"] for id in played} <= {"easy", "medium", "hard"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"digest": "0" * 16}, "is not what was frozen"),
        ({"tasks_sha256": "0" * 64}, "another file of tasks"),
        ({"tasks": {"retail/1": {"valid": 4, "solved": 2, "bucket": "medium"}}}, "knows none of the tasks"),
        ({"bucket": "never"}, "sets all 8 tasks aside"),
    ],
)
def test_a_profile_that_does_not_fit_is_refused(change: dict[str, Any], words: str, profile: Path, tmp_path: Path) -> None:
    from tau2rl.data.task_profile import write_profile

    content = {key: value for key, value in read_json(profile).items() if key not in ("schema", "digest")}
    if "bucket" in change:
        content["tasks"] = {key: {**task, **change} for key, task in content["tasks"].items()}
    else:
        content |= {key: value for key, value in change.items() if key != "digest"}
    file = tmp_path / "other.json"
    write_profile(file, content)
    if "digest" in change:
        file.write_text(json.dumps({**read_json(file), **change}), "utf-8")
    config = build(GrpoConfig, grpo_settings(profile=str(file)))
    with pytest.raises(UserError, match=words):
        training_tasks(config)


def test_a_profile_is_of_one_policy(teacher: Path, tmp_path: Path) -> None:
    tau2rl("eval", *MOCK, "--policy", "do-nothing", "--limit", 8, "--num-samples", 4, "--output", tmp_path / "run")
    other = tau2rl("synth", "profile", teacher, tmp_path / "run", "--output", tmp_path / "p.json", code=2)
    assert "the runs are of different policies" in other.stderr
    assert "is not below" in tau2rl("synth", "profile", teacher, "--easy", 0.2, code=2).stderr
    assert not (tmp_path / "p.json").exists()


def test_pass_at_k_stands_by_cell_of_writes_and_reads(tmp_path: Path) -> None:
    tau2rl("synth", "--num-tasks", 6, "--writes", "1,2", "--burdens", "0-2,3-5", "--refusals", 0, "--output", tmp_path / "made")
    tasks = ("--domains", "retail", "--task-source", tmp_path / "made" / "tasks.json", "--task-split", "base")
    agent = ("--policy", "gold", "--user-model", "scripted", "--protocol", "transcript", "--num-samples", 2)
    shown = tau2rl("eval", "--inline", *agent, *tasks, "--output", tmp_path / "gold").stdout
    proofs = [json.loads(line) for line in (tmp_path / "made" / "proofs.jsonl").read_text("utf-8").splitlines()]
    cells = [f"{proof['writes']} writes, {proof['burden_bin']} reads" for proof in proofs]
    report = read_json(tmp_path / "gold" / "report.json")
    assert {cell: part["tasks"] for cell, part in report["by_cell"].items()} == {cell: cells.count(cell) for cell in cells}
    assert list(report["by_cell"]) == sorted(set(cells))
    assert {part["pass@2"]["value"] for part in report["by_cell"].values()} == {1.0}
    assert "1 writes, 3-5 reads" in shown
    made = tau2rl("synth", "profile", tmp_path / "gold", "--output", tmp_path / "p.json", "--min-attempts", 2, "--json")
    assert json.loads(made.stdout)["by_cell"] == {cell: {"always": cells.count(cell)} for cell in sorted(set(cells))}
    values = grpo_settings(profile=str(tmp_path / "p.json"))
    values["tasks"] = {"domains": ["retail"], "split": "base", "source": str(tmp_path / "made" / "tasks.json")}
    config = build(GrpoConfig, {**values, "allow_held_out": True})
    with pytest.raises(UserError, match="sets all 6 tasks aside"):
        training_profile(config, training_tasks(build(GrpoConfig, {**values, "allow_held_out": True, "algo": {}}))[0])
