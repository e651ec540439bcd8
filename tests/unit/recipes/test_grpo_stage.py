"""What `tau2rl grpo` does around the training loop, on the real `mock` domain with a model that knows nothing; pinned here:

- every step has the same number of groups, also where an epoch ends in the middle of one;
- tasks of a file (`tasks.source`) are trained and validated on, each in their split of it;
- a sink of the user's gets conversations of each step and the lineage; progress says how many episodes are played at the time;
- on a real domain, validation needs no more than `train.val_every`: it is on tasks of that domain that no training sees;
- validation episodes are kept in `val/` and nowhere else, whatever `rollout.keep` says;
- `rollout.keep` keeps the trainer's log-probabilities of what it learned from: `show --tokens` has them beside the sampler's, and
  a training that goes on from an earlier step does not mix with those of later ones;
- tasks that no training should see, and validation tasks that are trained on, are refused before anything is written;
- both recipes of training write a report of one shape, and it names the backend;
- a backend's errors refuse the start all at once, its warnings do not; what ends early is an incomplete run with a report;
- an episode that may outgrow the model's positions is refused before anything is written, a row that does is left out and named,
  on either backend;
- a checkpoint that is damaged, or brings code of its own, is a request that cannot be carried out.
"""

from __future__ import annotations

import json
import logging
import re
import shlex
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tau2rl.backend import Issue, Plan, Trained, TrainingConfig
from tau2rl.cli import app
from tau2rl.config import GrpoConfig, SftConfig, ShapeConfig, build
from tau2rl.env.domain import domain
from tau2rl.errors import RunIncomplete, UserError
from tau2rl.recipes import grpo, sft
from tau2rl.recipes.training import max_positions
from tau2rl.runs.files import read_json
from tau2rl.runs.folder import RunFolder
from tau2rl.runs.progress import Progress, ProgressEvent
from tau2rl.runs.records import read_records
from tau2rl.runs.reports import Result
from tau2rl.train.backend import LocalBackend
from tau2rl.train.tiny import create_tiny
from tau2rl.types import Episode, Grade

SHAPE = ShapeConfig(hidden=16, layers=1, heads=1, head_dim=16, intermediate=32, vocab_size=300)
HELLO = [{"role": "system", "content": "Help."}, {"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi!"}]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "start"
    create_tiny([("a", {"messages": HELLO})], SHAPE, folder, seed=0)
    return folder


def settings(checkpoint: Path, **values: Any) -> dict[str, Any]:
    return {
        "model": {"init": str(checkpoint)},
        "tasks": {"domains": ["mock"], "split": "synth-train", "limit": 3},
        "user": {"kind": "scripted"},
        "sampling": {"max_tokens": 4},
        "limits": {"max_turns": 1, "context_tokens": 4000, "repairs": 0},
        "reward": {"preset": "outcome"},
        "rollout": {"num_samples": 2, "retries": 0},
        "train": {"steps": 4, "tasks_per_step": 2},
        **values,
    }


def carry_out(folder: Path, values: dict[str, Any], backend: Any = None) -> Result:
    config = build(GrpoConfig, values)
    with RunFolder.open(RunFolder.create(folder, config, resume=True)) as opened:
        return grpo.run(config, opened, lambda _: None, backend)


def test_every_step_has_the_same_number_of_groups(checkpoint: Path, tmp_path: Path) -> None:
    values = settings(checkpoint, train={"steps": 4, "tasks_per_step": 2, "export_every": 2})
    report = carry_out(tmp_path / "run", values).report
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [line["groups/tried"] for line in lines] == [2, 2, 2, 2]  # of 3 tasks: step 2 goes over the border of an epoch
    assert (report["tasks"], report["training"]["tried_groups"]) == (3, 8)
    kept = [LocalBackend().checkpoint(tmp_path / "run", step) for step in (1, 2, 4)]
    assert [None if path is None else path.name for path in kept] == [None, "step_00002", "step_00004"]


def test_a_sink_gets_conversations_of_each_step_and_the_lineage(checkpoint: Path, tmp_path: Path) -> None:
    tracking = {"sinks": ["tests.stubs.sink:Told"], "conversations": 3}
    steps = {"steps": 2, "tasks_per_step": 2, "val_every": 2}
    values = settings(checkpoint, train=steps, val={"limit": 2}, tracking=tracking)
    config, heard = build(GrpoConfig, values), list[ProgressEvent]()
    with RunFolder.open(RunFolder.create(tmp_path / "run", config, resume=True)) as opened:
        report = grpo.run(config, opened, heard.append).report
    told = [json.loads(line) for line in (tmp_path / "run" / "told.jsonl").read_text("utf-8").splitlines()]
    assert [each[0] for each in told] == ["start", "write", "show", "write", "show", "lineage", "close"]
    shown = {each[1]: each[2] for each in told if each[0] == "show"}
    assert [len(rows) for rows in shown.values()] == [3, 3]  # of 4, and of 4 with 2 of the validation
    assert all("user:" in row["conversation"] for rows in shown.values() for row in rows)
    assert told[-2] == ["lineage", {"model": [report["inputs"]["parent"]]}, {"model": [report["outputs"]["checkpoint"]]}]
    flying = [event.in_flight for event in heard if event.in_flight is not None]
    assert (min(flying), max(flying), flying[-1]) == (0, 4, 0)  # the four attempts of a step, and all have ended


def test_a_run_whose_state_is_gone_is_not_begun_again(checkpoint: Path, tmp_path: Path) -> None:
    run, values = tmp_path / "run", settings(checkpoint, train={"steps": 1, "tasks_per_step": 2})
    carry_out(run, values)
    curves = (run / "metrics.jsonl").read_bytes()
    shutil.rmtree(run / "checkpoints" / "state")
    with pytest.raises(UserError, match="no training state, and the run was at step 1"):
        carry_out(run, values | {"train": {"steps": 2, "tasks_per_step": 2}})
    assert (run / "metrics.jsonl").read_bytes() == curves


def test_tasks_of_a_file_are_trained_and_validated_on(checkpoint: Path, tmp_path: Path) -> None:
    tasks = [task.model_dump(mode="json") for task in islice(domain("mock").tasks("synth-train").values(), 5)]
    ids = [f"mine_{number}" for number in range(5)]
    (tmp_path / "tasks.json").write_text(json.dumps([{**task, "id": id} for task, id in zip(tasks, ids, strict=True)]), "utf-8")
    (tmp_path / "split_tasks.json").write_text(json.dumps({"train-learn": ids[:3], "train-select": ids[3:]}), "utf-8")
    named = {"source": str(tmp_path / "tasks.json"), "domains": ["mock"], "split": "train-learn"}
    values = settings(
        checkpoint, tasks=named, val={"split": "train-select"}, train={"steps": 2, "tasks_per_step": 2, "val_every": 2}
    )
    values["rollout"]["keep"] = True
    carry_out(tmp_path / "run", values)
    assert {record.attempt.task.task_id for record in read_records(tmp_path / "run" / "episodes.jsonl")} == set(ids[:3])
    assert {record.attempt.task.task_id for record in read_records(tmp_path / "run" / "val" / "step_00002.jsonl")} == set(ids[3:])
    assert set(read_json(tmp_path / "run" / "environment.json")["identity"]["bench"]["sources"]) == {"tasks", "val"}


@pytest.mark.parametrize("keep", [True, False])
def test_validation_episodes_are_kept_in_val_alone(keep: bool, checkpoint: Path, tmp_path: Path) -> None:
    values = settings(checkpoint, train={"steps": 2, "tasks_per_step": 2, "val_every": 1})
    values |= {"val": {"domains": ["mock"], "split": "synth-select", "limit": 3}}
    values["rollout"]["keep"] = keep
    report = carry_out(tmp_path, values).report
    validated = {step: [r.attempt.task for r in read_records(tmp_path / "val" / f"step_{step:05}.jsonl")] for step in (1, 2)}
    assert [len(tasks) for tasks in validated.values()] == [3, 3]
    assert {task.split for tasks in validated.values() for task in tasks} == {"synth-select"}
    rollouts = list(read_records(tmp_path / "episodes.jsonl"))
    assert {record.attempt.task.split for record in rollouts} == ({"synth-train"} if keep else set())
    assert len(rollouts) == (2 * 2 * 2 if keep else 0)
    assert list(report["training"]["validation"]) == [1, 2]


def worth_by_seed(episode: Episode, grade: Grade) -> float:
    """A reward term that gives a group a signal, whatever the model does."""
    return episode.seed % 7 / 7


def test_the_trainers_log_probabilities_stand_beside_the_samplers(checkpoint: Path, tmp_path: Path) -> None:
    values = settings(checkpoint, train={"steps": 2, "tasks_per_step": 2, "save_every": 1})
    values["rollout"]["keep"] = True
    values["reward"]["terms"] = [{"fn": f"{__name__}:worth_by_seed", "weight": 0.1}]
    carry_out(tmp_path / "run", values)
    kept = tmp_path / "run" / "trainer_logprobs"
    lines = {file.stem: [json.loads(line) for line in file.read_text().splitlines()] for file in kept.iterdir()}
    assert set(lines) == {"step_00001", "step_00002"}
    key = lines["step_00002"][0]["attempt"]
    task, attempt = key.split("#")
    found = CliRunner().invoke(app, ["show", str(tmp_path / "run"), task, "--attempt", attempt, "--tokens", "--json"])
    assert found.exit_code == 0, found.output
    (span,) = [span for span in json.loads(found.stdout)["tokens"]["spans"] if span["mask"]]
    assert span["trainer"] == lines["step_00002"][0]["turns"][0] == pytest.approx(span["logprobs"], abs=1e-4)
    assert len(set(span["trainer"])) > 1
    shown = CliRunner().invoke(app, ["show", str(tmp_path / "run"), task, "--attempt", attempt, "--tokens"])
    assert re.search(
        rf"^ +{span['ids'][0]} 1 +{span['logprobs'][0]:.4f} +[-+]0\.0000 +[-+]\d\.\d{{3}} ", shown.stdout, re.MULTILINE
    )
    measured = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert all(line["seconds/user_message"] is None or line["seconds/user_message"] >= 0 for line in measured)

    (kept / "step_00003.jsonl").write_text('{"attempt": "of a step that was not saved", "turns": []}\n')
    carry_out(tmp_path / "run", {**values, "train": {"steps": 3, "tasks_per_step": 2, "save_every": 1}})
    assert "not saved" not in (kept / "step_00003.jsonl").read_text()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"tasks": {"domains": ["mock"], "split": "synth-test", "limit": 3}}, "synth-test"),
        (
            {
                "tasks": {"domains": ["mock"], "split": "base", "limit": 3},
                "allow_held_out": True,
                "val": {"domains": ["mock"], "split": "base", "limit": 2},
                "train": {"val_every": 1},
            },
            "holds test tasks",
        ),
        ({"reward": {"preset": "pipeline", "alpha": 5.0}}, "can outscore a success"),
    ],
    ids=["a test split", "validation on training tasks", "a reward under which failures win"],
)
def test_what_no_training_should_do_is_refused(values: dict[str, Any], words: str, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        carry_out(tmp_path / "run", settings(checkpoint, **values))
    assert not (tmp_path / "run" / "environment.json").exists()


def test_a_damaged_checkpoint_is_named(checkpoint: Path, tmp_path: Path) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model" / "model.safetensors").write_bytes(b"\x10" + bytes(100))
    with pytest.raises(UserError, match="cannot read the checkpoint"):
        carry_out(tmp_path / "run", settings(tmp_path / "model"))


def test_a_checkpoint_with_code_of_its_own_does_not_run_it(checkpoint: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in checkpoint.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    config = read_json(model / "config.json")
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Mine"}}
    (model / "config.json").write_text(json.dumps(config))
    (model / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    with pytest.raises(UserError, match="cannot read the checkpoint"):
        carry_out(tmp_path / "run", settings(model))
    assert not (tmp_path / "ran").exists()


def with_positions(checkpoint: Path, folder: Path, **config: Any) -> Path:
    """The checkpoint with other values in its config.json."""
    shutil.copytree(checkpoint, folder)
    (folder / "config.json").write_text(json.dumps(read_json(folder / "config.json") | config), "utf-8")
    return folder


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        ({"max_position_embeddings": 100}, 100),
        ({"max_position_embeddings": None}, None),
        ({"max_position_embeddings": 100, "rope_scaling": {"type": "yarn", "factor": 4.0}}, 400),
        (
            {
                "max_position_embeddings": 400,
                "rope_parameters": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 50},
            },
            400,
        ),
        (
            {
                "max_position_embeddings": 400,
                "rope_parameters": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 100},
            },
            400,
        ),
        ({"max_position_embeddings": None, "text_config": {"max_position_embeddings": 70}}, 70),
    ],
    ids=["plain", "without a limit", "stretched", "stretched and said so", "llama3", "inside a model that sees"],
)
def test_the_positions_of_a_model_are_read_from_its_config(config: dict[str, Any], positions: int | None, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    assert max_positions(tmp_path) == positions


def test_a_training_on_a_real_domain_is_validated_on_tasks_of_its_own_domain(checkpoint: Path, tmp_path: Path) -> None:
    model = with_positions(checkpoint, tmp_path / "model", max_position_embeddings=1 << 16)
    said = f"grpo --model '{model}' --domains retail --user-model scripted --backend local --device cpu --inline --reward outcome"
    short = "--limit 1 --num-samples 2 --tasks-per-step 1 --steps 1 --limits.max_turns 1 --sampling.max_tokens 4 --val.limit 2"
    words = f"{said} {short} --train.warmup_steps 0 --val-every 1 --output '{tmp_path / 'run'}' --json"
    result = CliRunner().invoke(app, shlex.split(words))
    assert result.exit_code == 0, result.output
    refs = [record.episode.task for record in read_records(tmp_path / "run" / "val" / "step_00001.jsonl")]
    assert [(ref.domain, ref.split) for ref in refs] == [("retail", "train-select")] * 2


@pytest.mark.parametrize("elsewhere", [False, True], ids=["local", "another backend"])
def test_an_episode_longer_than_the_models_positions_is_refused(elsewhere: bool, checkpoint: Path, tmp_path: Path) -> None:
    model = with_positions(checkpoint, tmp_path / "model", max_position_embeddings=3999)
    with pytest.raises(UserError, match=r"`limits.context_tokens` is 4000, and the model in .* has 3999 positions") as refused:
        carry_out(tmp_path / "run", settings(model), Backend(model) if elsewhere else None)
    assert "limits.context_tokens=3999" in (refused.value.hint or "")
    assert not (tmp_path / "run" / "environment.json").exists()


def test_a_row_longer_than_the_models_positions_is_left_out_and_named(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = with_positions(checkpoint, tmp_path / "model", max_position_embeddings=100)
    rows = tmp_path / "rows.jsonl"
    long = [*HELLO[:-1], {"role": "assistant", "content": "Hi! " * 100}]
    rows.write_text("".join(json.dumps({"messages": each}) + "\n" for each in (HELLO, long)), "utf-8")
    data = {"files": [str(rows)], "val_fraction": 0}
    config = build(SftConfig, {"data": data, "model": {"init": str(model)}, "train": {"steps": 1}})
    seen = Backend(model)
    for name, backend in (("here", None), ("elsewhere", seen)):
        with RunFolder.open(RunFolder.create(tmp_path / name, config, resume=False)) as opened:
            with caplog.at_level(logging.WARNING, logger="tau2rl"):
                report = sft.run(config, opened, lambda _: None, backend).report
        if backend is None:
            assert (report["rows"]["used"], report["rows"]["reasons"]) == (1, {"too long": 1})
    assert "1 rows have more than 100 tokens and are left out" in caplog.text
    assert "rows.jsonl" in caplog.text
    assert isinstance(seen.trained, SftConfig)
    assert seen.trained.data.max_tokens == 100


class Backend:
    """One that trains nothing."""

    def __init__(self, start: Path, *, issues: tuple[Issue, ...] = (), interrupted: str = "") -> None:
        self._start = start
        self._plan = Plan(issues=issues, recorded={"cluster": "a"})
        self._interrupted = interrupted

    def plan(self, config: TrainingConfig, *, probe: bool) -> Plan:
        assert probe
        return self._plan

    def start(self, config: TrainingConfig, folder: RunFolder) -> Path:
        return self._start

    def train(self, config: TrainingConfig, folder: RunFolder, progress: Progress) -> Trained:
        self.trained = config
        rows = {"used": 1} if isinstance(config, SftConfig) else None
        return Trained(
            checkpoint=self._start, training={"steps": 1}, cost={"wall": None}, rows=rows, interrupted=self._interrupted
        )

    def checkpoint(self, run: Path, step: int) -> Path | None:
        return None


def test_reports_have_one_shape_on_every_backend(checkpoint: Path, tmp_path: Path) -> None:
    values = settings(checkpoint, train={"steps": 1, "tasks_per_step": 1})
    here, elsewhere = carry_out(tmp_path / "a", values).report, carry_out(tmp_path / "b", values, Backend(checkpoint)).report
    assert list(here) == list(elsewhere) == [
        "stage", "backend", "digest", "incomplete", "inputs", "outputs", "tasks", "training", "cost",
    ]  # fmt: skip
    assert here["backend"] == "local"
    assert here["digest"] == elsewhere["digest"]  # what is only recorded does not change it
    assert read_json(tmp_path / "b" / "environment.json")["recorded"]["cluster"] == "a"

    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": HELLO}) + "\n", "utf-8")
    config = build(SftConfig, {"data": {"files": [str(tmp_path / "rows.jsonl")]}, "model": {"init": str(checkpoint)}})
    with RunFolder.open(RunFolder.create(tmp_path / "c", config, resume=False)) as opened:
        supervised = sft.run(config, opened, lambda _: None, Backend(checkpoint)).report
    assert list(supervised) == [name if name != "tasks" else "rows" for name in here]
    assert supervised["rows"] == {"used": 1}


def test_a_backends_errors_are_said_together_and_its_warnings_are_logged(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    warning = Issue(kind="warning", message="slow disk", hint="another one")
    errors = tuple(Issue(kind="error", message=f"no {what}", hint=f"bring {what}") for what in ("GPU", "memory"))
    values = settings(checkpoint)
    with pytest.raises(UserError, match="no GPU\nno memory") as refused:
        carry_out(tmp_path / "a", values, Backend(checkpoint, issues=(warning, *errors)))
    assert refused.value.hint == "bring GPU\nbring memory"
    assert not (tmp_path / "a" / "environment.json").exists()
    with caplog.at_level(logging.WARNING, logger="tau2rl"):
        assert carry_out(tmp_path / "b", values, Backend(checkpoint, issues=(warning,))).complete
    assert "slow disk (another one)" in caplog.text


def test_what_ends_early_is_incomplete_and_has_a_report(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(RunIncomplete, match="killed by signal 9"):
        carry_out(tmp_path, settings(checkpoint), Backend(checkpoint, interrupted="killed by signal 9"))
    assert read_json(tmp_path / "report.json")["incomplete"] is True
