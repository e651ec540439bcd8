"""slime's log, and what the report makes of a run; pinned here:

- the numbers of a step are read out of slime's log as it prints them, and keys in the log are not kept;
- the reason of a failure is the error that the log names last;
- the report joins the lines of a step and does not count what no step trained on;
- its cost is what the rollout process says of itself, within the wall time of the jobs.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from tau2rl.report.cost import Costs, Session
from tau2rl.runs.progress import ProgressEvent
from tau2rl.slime.backend import cost_of
from tau2rl.slime.train_log import TrainLog, read_numbers, slime_summary


def test_numbers_are_read_as_slime_prints_them() -> None:
    prefix = "\x1b[36m(MegatronTrainRayActor pid=7)\x1b[0m [2026-08-21 17:14:19] model.py:918 - "
    found = read_numbers(prefix + "step 12: {'train/loss': -1.5e-05, 'train/grad_norm': 0.25, 'train/step': 12}")
    assert found is not None
    assert (found.kind, found.index) == ("step", 12)
    assert found.values == {"train/loss": -1.5e-05, "train/grad_norm": 0.25, "train/step": 12.0}
    assert read_numbers(prefix + "critic-step 12: {'train/critic-loss': 1.0}") is None
    assert read_numbers(prefix + "passrate 12: {'passrate/pass@1': 1.0}") is None


def test_a_log_keeps_lines_and_curves_but_no_key(tmp_path: Path) -> None:
    said, events = io.StringIO(), list[ProgressEvent]()
    log = TrainLog(
        file=tmp_path / "slime.log",
        metrics=tmp_path / "metrics.jsonl",
        steps=4,
        minibatches=2,
        clean=lambda text: text.replace("sk-1", "[KEY]"),
        say=said,
        progress=events.append,
    )
    with log:
        for line in (
            "a line with sk-1",
            "x - rollout 0: {'rollout/raw_reward': 0.25}",
            "x - step 0: {'train/loss': 0.5, 'train/grad_norm': nan, 'train/step': 0}",
            "x - step 1: {'train/loss': 0.25, 'train/step': 1}",
            "(RolloutManager pid=3) x - perf 0: {'perf/rollout_time': 30.0}",
            "x - perf 0: {'perf/train_wait_time': 31.0, 'perf/train_time': 8.5, 'perf/actor_train_time': 6.0}",
            "x - step 2: {'train/loss': 0.125, 'train/step': 2}",
            "x - perf 1: {'perf/train_time': 1.5}",
            "(RolloutManager pid=3) tau2rl.errors.RunIncomplete: the user simulator was away for 1800 s",
            "ray.exceptions.RayTaskError(RunIncomplete): ray::RolloutManager.generate()",
        ):
            log(line)
    assert "sk-1" not in said.getvalue() + (tmp_path / "slime.log").read_text()
    assert said.getvalue().startswith("a line with [KEY]\n")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [  # two optimizer steps are one rollout batch
        {"step": 1, "train/loss": 0.5, "train/grad_norm": None},
        {"step": 1, "train/loss": 0.25},
        {"step": 2, "train/loss": 0.125},
    ]
    assert [(event.done, event.total, event.note) for event in events][-1] == (2, 4, "reward 0.250")
    assert log.train_seconds == 10.0
    assert log.reason() == "RunIncomplete: the user simulator was away for 1800 s"


def test_a_report_joins_the_lines_of_a_step(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    lines = [
        {"step": 0, "val/pass@1": 0.25},
        {"step": 1, "reward/mean": 0.0, "groups/useful": 3, "episodes/failed": 1},
        {"step": 1, "train/loss": 0.5},
        {"step": 2, "reward/mean": 0.5, "groups/useful": 4, "episodes/failed": 0},
        {"step": 2, "train/loss": 0.25},
        {"step": 2, "val/pass@1": 0.75},
        {
            "step": 3,
            "reward/mean": 1.0,
            "groups/useful": 5,
            "episodes/failed": 0,
        },  # played, and the run broke before it was trained on
    ]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert slime_summary(metrics) == {
        "steps": 2,
        "reward_first": 0.25,
        "reward_last": 0.25,
        "loss_first": 0.375,
        "loss_last": 0.375,
        "useful_groups": 7,
        "failed_episodes": 1,
        "validation": {0: 0.25, 2: 0.75},
    }
    assert slime_summary(tmp_path / "absent.jsonl") == {"steps": 0}


def started(run: Path, number: int, **values: Any) -> None:
    logs = run / "logs" / f"session_{number}"
    logs.mkdir(parents=True)
    for name, start in values.items():
        (logs / f"{name}.json").write_text(json.dumps(start.to_json()))


def test_the_cost_of_reinforcement_is_that_of_its_rollouts_within_the_job(tmp_path: Path) -> None:
    costs = Costs(episodes=4, seconds=80.0, policy_seconds=60.0, policy_in=1000, policy_out=100, env_cpu_seconds=2.0)
    rollout = Session(seconds=30.0, cpu_seconds=6.0, cores=16, played=costs)
    started(tmp_path, 1, play=Session(seconds=60.0, cpu_seconds=1.0, cores=16, wall={"update": 20.0}), rollout=rollout)
    started(tmp_path, 2, play=Session(seconds=40.0, cpu_seconds=1.0, cores=16, wall={"update": 10.0}), rollout=rollout)
    cost = cost_of(tmp_path)
    assert cost["wall"]["seconds"] == {"rollout": 60.0, "update": 30.0, "rest": 10.0}
    assert cost["process"] == {"wall_seconds": 60.0, "cpu_seconds": 12.0, "busy": 0.2, "cores": 16, "reason": None}
    assert (cost["episodes"], cost["tokens"]["policy_in"], cost["env_cpu"]["seconds"]) == (8, 2000, 4.0)
    assert cost["bottleneck"] == (
        "60% of the wall time is rollouts, 75% of episode time waits for the policy, the process was busy 20% of the time"
    )


def test_of_supervised_training_on_a_cluster_the_wall_time_is_known(tmp_path: Path) -> None:
    started(tmp_path, 1, play=Session(seconds=50.0, cpu_seconds=1.0, cores=2, wall={"update": 40.0}))
    cost = cost_of(tmp_path)
    assert cost["process"]["wall_seconds"] == 50.0
    assert (cost["process"]["busy"], cost["process"]["reason"]) == (None, "the work was done in other processes")
    assert cost["bottleneck"] == "80% of the wall time is training"
