"""`tau2rl select-checkpoint` and the test-set access log; pinned here, on run folders with made-up results:

- success alone decides: where the shaped score rises and success falls, the early checkpoint is chosen;
- validations of every backend, one of the user's too, are found with their checkpoints; one whose checkpoint was not kept is
  named and not chosen, and so is a checkpoint that was not validated; of an attempt with several records the same one counts as
  in a report;
- finished evaluations of checkpoints decide when they are named; others than of one training, with one measurement, are refused;
- results on test tasks, and on tasks that were trained on, are refused;
- an evaluation of the run's checkpoints on a test split is counted once however often it is resumed; a second one, and one
  of what was not chosen, are said; a new choice keeps the count and says that there was one;
- `tau2rl eval` does that for the directory that an SGLang server says it serves: in environment, report and table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tau2rl.chat import make_codec
from tau2rl.cli import app
from tau2rl.config import ChatConfig, EvalConfig, GrpoConfig, StageConfig, build
from tau2rl.env import synth
from tau2rl.errors import UserError
from tau2rl.recipes.select import select_checkpoint
from tau2rl.recipes.test_access import find_test_access, log_test_access
from tau2rl.report.report import build_report
from tau2rl.runs.files import read_json, write_json
from tau2rl.runs.folder import RunFolder
from tau2rl.runs.records import write_validation
from tau2rl.runs.secrets import Redactor
from tau2rl.types import Attempt, Episode, EpisodeRecord, Failure, Fault, Grade, Say, Score, Status, StopReason, TaskRef
from tests.stubs.sglang import SGLangStub

runner = CliRunner()
SPLIT = "synth-select"


def ref(number: int, split: str = SPLIT) -> TaskRef:
    return TaskRef(domain="mock", task_id=synth.task_id(split, number), split=split)


def record(task: TaskRef, mark: str, shaped: float = 0.0, attempt: int = 0) -> EpisodeRecord:
    """`1` solved, `0` not, `x` FAILED."""
    failure = Failure(fault=Fault.USER, kind="UserSimulatorFailure", message="gone") if mark == "x" else None
    grade = None if failure else Grade(reward=float(mark), checks=None, reward_basis=())
    episode = Episode(
        task=task,
        seed=1,
        status=Status.FAILED if failure else Status.COMPLETED,
        stop_reason=StopReason.USER_STOP,
        token_ids=(),
        turns=(),
        messages=(),
        grade=grade,
        failure=failure,
    )
    score = None if failure else Score(task=float(mark), partial=0.0, shaped=shaped, components={})
    numbered = Attempt(task=task, index=attempt, seed=1)
    return EpisodeRecord(schema=1, run="r", attempt=numbered, tries=1, episode=episode, score=score)


def make_run(path: Path, config: StageConfig) -> Path:
    with RunFolder.open(RunFolder.create(path, config, resume=False)):
        return path


def checkpoint(path: Path) -> Path:
    """The files that make a model, each with content of its own; the index is what slime writes last."""
    path.mkdir(parents=True)
    (path / "model.safetensors.index.json").write_text("{}", "utf-8")
    (path / "config.json").write_text("{}", "utf-8")
    (path / "model.safetensors").write_text(str(path), "utf-8")
    return path


def training(
    path: Path,
    validations: Mapping[int, str],
    *,
    kept: str = "step_{0:05}",
    shaped: float = 0.0,
    val_every: int = 0,
    backend: str = "local",
    **tasks: Any,
) -> Path:
    """A GRPO run that was validated behind some steps; results as marks, a task each."""
    learned = {"domains": ["mock"], "split": "synth-train", "limit": 3, **tasks}
    train = {"steps": 60, "val_every": val_every}
    make_run(path, build(GrpoConfig, {"model": {"init": "a/checkpoint"}, "tasks": learned, "train": train, "backend": backend}))
    for step, marks in validations.items():
        write_validation(path, step, [record(ref(i), m, shaped * step) for i, m in enumerate(marks)], redactor=Redactor())
        if step and kept:
            checkpoint(path / "checkpoints" / kept.format(step, step - 1))
    return path


def evaluation(path: Path, model: Path, marks: str, *, split: str = SPLIT, missing: int = 0, **settings: Any) -> Path:
    """A run of `tau2rl eval` of a checkpoint."""
    make_run(path, evaluated(model, split=split, output=path, **settings))
    records = [record(ref(i, split), mark) for i, mark in enumerate(marks)]
    planned = [r.attempt for r in records] + [record(ref(90 + i, split), "0").attempt for i in range(missing)]
    write_json(path / "report.json", build_report(records, planned=planned, floors={}, digest=path.name))
    identity = {"settings": {"policy.checkpoint": str(model), **settings}, "agent": "checkpoint 1234"}
    write_json(path / "environment.json", {"schema": 2, "identity": identity})
    return path


def evaluated(model: Path, *, split: str = "synth-test", **settings: Any) -> EvalConfig:
    policy = {"kind": "local", "checkpoint": str(model)}
    return build(EvalConfig, {"policy": policy, "tasks": {"domains": ["mock"], "split": split}, **settings})


def test_success_decides_and_the_shaped_score_does_not(tmp_path: Path) -> None:
    run = training(tmp_path / "run", {20: "1111111000", 40: "1110000000", 60: "1000000000"}, shaped=1.0)
    found = select_checkpoint([run])
    assert (found["chosen"]["step"], found["best"], found["chosen"]["success"]) == (20, 20, 0.7)
    assert [one["within"] for one in found["candidates"]] == [True, False, False]
    assert found["chosen"]["path"] == str(run / "checkpoints" / "step_00020") and len(found["chosen"]["sha256"]) == 64
    assert (found["tasks"], found["splits"], found["test_access_log"]) == (10, [SPLIT], [])
    assert read_json(run / "selection.json") == found


def test_the_chosen_has_a_name_that_later_steps_can_use(tmp_path: Path) -> None:
    run = training(tmp_path / "run", {20: "1111111000", 40: "1110000000"})
    select_checkpoint([run])
    selected = run / "checkpoints" / "selected"
    assert selected.is_symlink() and selected.resolve() == run / "checkpoints" / "step_00020"
    named = [
        evaluation(tmp_path / "a", selected, "1000000"),
        evaluation(tmp_path / "b", selected.with_name("step_00040"), "1111000"),
    ]
    select_checkpoint(named)
    assert selected.resolve() == run / "checkpoints" / "step_00040"
    select_checkpoint([named[1], evaluation(tmp_path / "c", selected.with_name("step_00020"), "1111111")])
    assert selected.resolve() == run / "checkpoints" / "step_00020"


def test_ties_go_to_fewer_steps(tmp_path: Path) -> None:
    assert select_checkpoint([training(tmp_path / "run", {60: "0110", 40: "1001", 20: "0011"})])["chosen"]["step"] == 20


class Elsewhere:
    """A backend of the user's, which keeps its models in a place of its own."""

    def checkpoint(self, run: Path, step: int) -> Path | None:
        return run / "checkpoints" / "mine" / f"{step}"


@pytest.mark.parametrize(
    ("backend", "kept"), [("local", "step_{0:05}"), ("slime", "hf/{1}"), (f"{__name__}:Elsewhere", "mine/{0}")]
)
def test_checkpoints_of_every_backend_are_found(tmp_path: Path, backend: str, kept: str) -> None:
    run = training(tmp_path / "run", {20: "1000000", 40: "1111000"}, kept=kept, backend=backend)
    found = select_checkpoint([run])
    assert (found["chosen"]["step"], found["candidates"][1]["checkpoint"]) == (40, f"checkpoints/{kept.format(40, 39)}")


def test_the_last_step_may_be_the_final_checkpoint(tmp_path: Path) -> None:
    run = training(tmp_path / "run", {30: "1000000", 60: "1111000"}, kept="")
    with pytest.raises(UserError, match=r"no checkpoint is kept of the steps that .* validated: 30, 60") as refused:
        select_checkpoint([run])
    assert "train.export_every" in refused.value.hint
    final = checkpoint(run / "checkpoints" / "final")
    found = select_checkpoint([run])
    assert (found["chosen"]["path"], found["not_kept"]) == (str(final), [30])


def test_the_model_before_training_is_told_and_not_chosen(tmp_path: Path) -> None:
    found = select_checkpoint([training(tmp_path / "run", {0: "1100000000", 20: "1110000000", 40: "0000000001"})])
    assert found["chosen"]["step"] == 20
    assert found["start"] == {"success": 0.2, "gap": pytest.approx(0.1), "gap_se": pytest.approx(0.1)}
    assert [one["step"] for one in found["candidates"]] == [20, 40]


def test_a_checkpoint_whose_validation_was_lost_is_named(tmp_path: Path) -> None:
    run = training(tmp_path / "run", {10: "1000000", 30: "1111000"}, kept="hf/{1}", val_every=10, backend="slime")
    checkpoint(run / "checkpoints" / "hf" / "19")  # saved, and the job was ended before the validation
    checkpoint(run / "checkpoints" / "hf" / "24")  # no validation was due
    told = runner.invoke(app, ["select-checkpoint", str(run)])
    assert "step 20 was saved, but never validated" in told.stderr and "step 25" not in told.stderr
    selection = read_json(run / "selection.json")
    assert selection["without_validation"] == [20] and selection["chosen"]["step"] == 30


def test_what_failed_is_no_evidence(tmp_path: Path) -> None:
    found = select_checkpoint([training(tmp_path / "run", {20: "1" * 10 + "0", 40: "x" + "1" * 9 + "0"})])
    assert (found["tasks"], found["tasks_left_out"]) == (10, [ref(0).key])
    assert [one["success"] for one in found["candidates"]] == [0.9, 0.9]


def test_a_run_without_validations_says_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="was never validated") as refused:
        select_checkpoint([training(tmp_path / "run", {})])
    assert "train.val_every" in refused.value.hint and "--task-split train-select" in refused.value.hint


def test_evaluations_of_checkpoints_decide_when_they_are_named(tmp_path: Path) -> None:
    run = training(tmp_path / "run", {20: "1111111", 40: "0000001"})
    models = {step: run / "checkpoints" / f"step_{step:05}" for step in (20, 40)}
    named = [evaluation(tmp_path / f"at-{step}", models[step], marks) for step, marks in ((20, "1000000"), (40, "1111000"))]
    found = select_checkpoint(named)
    assert (found["run"], found["chosen"]["step"]) == (str(run), 40)
    assert found["source"] == [
        {"run": str(path), "digest": path.name, "step": s} for path, s in zip(named, (20, 40), strict=True)
    ]
    assert select_checkpoint([run, *named])["chosen"] == found["chosen"]
    assert select_checkpoint([run])["chosen"]["step"] == 20


def test_only_one_measurement_of_one_training_is_compared(tmp_path: Path) -> None:
    run, other = (training(tmp_path / name, {20: "1000", 40: "1100"}) for name in ("run", "other"))
    first = evaluation(tmp_path / "a", run / "checkpoints" / "step_00020", "1000")
    cases = [
        ([run, other], "one training run"),
        ([first, evaluation(tmp_path / "b", other / "checkpoints" / "step_00020", "1000")], "not of"),
        ([first, evaluation(tmp_path / "c", run / "checkpoints" / "step_00020", "1100")], "two evaluations of step 20"),
        ([first, evaluation(tmp_path / "d", run / "checkpoints" / "step_00040", "1100", seed=7)], "these differ: settings.seed"),
        ([evaluation(tmp_path / "e", run / "checkpoints" / "step_00040", "11", missing=1)], "is not complete"),
        ([evaluation(tmp_path / "f", checkpoint(tmp_path / "elsewhere"), "11")], "does not say which checkpoint of a training"),
    ]
    for folders, words in cases:
        with pytest.raises(UserError, match=words):
            select_checkpoint(folders)


def test_test_tasks_and_trained_tasks_are_refused(tmp_path: Path) -> None:
    run = training(tmp_path / "run", {20: "10"})
    model = run / "checkpoints" / "step_00020"
    with pytest.raises(UserError, match="are test tasks"):
        select_checkpoint([evaluation(tmp_path / "a", model, "10", split="synth-test")])
    trained = training(tmp_path / "trained", {20: "10"}, split=SPLIT)
    with pytest.raises(UserError, match="are trained on"):
        select_checkpoint([trained])
    assert not (run / "selection.json").exists() and not (trained / "selection.json").exists()


def take(model: Path, run: Path, digest: str, *, split: str = "synth-test") -> dict[str, Any] | None:
    """What `tau2rl eval` does before it plays."""
    access = find_test_access(evaluated(model, split=split), "checkpoint 1234", [ref(0, split)])
    return log_test_access(access, run=run, digest=digest) if access else None


def test_an_access_to_the_test_split_is_counted_once_and_a_second_one_is_said(tmp_path: Path) -> None:
    run = training(tmp_path / "run", {20: "1110000", 40: "1000000"})
    model, worse = run / "checkpoints" / "step_00020", run / "checkpoints" / "step_00040"
    assert take(model, tmp_path / "t0", "d0") is None  # nothing was chosen yet
    select_checkpoint([run])
    assert take(model, tmp_path / "s", "d", split=SPLIT) is None  # no test task
    assert take(checkpoint(tmp_path / "elsewhere"), tmp_path / "e", "d") is None

    for _ in range(2):  # a run, and its resumption
        first = take(model, tmp_path / "t1", "d1")
        assert first and (first["chosen"], first["number"], first["warning"]) == (True, 1, "")
    second = take(model, tmp_path / "t2", "d2")
    assert second and second["number"] == 2 and "the test tasks of mock were used before" in second["warning"]
    third = take(worse, tmp_path / "t3", "d3")
    assert third and not third["chosen"] and "was not chosen by" in third["warning"] and "this is access 3" in third["warning"]

    entries = read_json(run / "selection.json")["test_access_log"]
    assert [(entry["run"], entry["digest"], entry["chosen"]) for entry in entries] == [
        (str(tmp_path / f"t{i}"), f"d{i}", chosen) for i, chosen in ((1, True), (2, True), (3, False))
    ]
    assert select_checkpoint([run])["test_access_log"] == entries
    said = runner.invoke(app, ["select-checkpoint", str(run)])
    assert "warning: the test split was used before, 3 times" in said.stderr


def test_an_evaluation_says_which_access_it_is(tmp_path: Path) -> None:
    run = training(tmp_path / "run", {20: "1110000"})
    served = select_checkpoint([run])["chosen"]["path"]
    done = make_codec(ChatConfig(protocol="native", tokenizer="bytes")).write((Say(text="That is done."),))
    with SGLangStub(answer=lambda ids, params: done, model=served) as server:
        for name in ("first", "second"):
            options = [
                "--domains",
                "mock",
                "--task-split",
                "synth-test",
                "--limit",
                "1",
                "--num-samples",
                "1",
                "--url",
                server.url,
            ]
            more = ["--tokenizer", "bytes", "--user-model", "scripted", "--output", str(tmp_path / name), "--inline"]
            result = runner.invoke(app, ["eval", *options, *more])
            assert result.exit_code == 0, result.stderr
            assert read_json(tmp_path / name / "environment.json")["recorded"]["test_access"]["chosen"] is True
            assert read_json(tmp_path / name / "report.json")["test_access"]["number"] == (1 if name == "first" else 2)
    told = [runner.invoke(app, ["report", str(tmp_path / name)]).stdout.splitlines()[-1] for name in ("first", "second")]
    assert told[0] == f"test-set access 1 for the checkpoint chosen by `{run / 'selection.json'}`"
    assert told[1].startswith("warning: the test tasks of mock were used before")


def test_the_choice_as_a_table_and_as_json(tmp_path: Path) -> None:
    run = training(tmp_path / "run", {0: "0000000000", 20: "1000000000", 40: "1111100000", 60: "1111110000"})
    (run / "checkpoints" / "step_00060" / "config.json").unlink()
    result = runner.invoke(app, ["select-checkpoint", str(run), "--json"])
    assert (result.exit_code, json.loads(result.stdout)) == (0, read_json(run / "selection.json"))
    shown = runner.invoke(app, ["select-checkpoint", str(run)])
    rows = [line.split() for line in shown.stdout.splitlines() if line.split()[:1] in (["20"], ["40"])]
    assert rows == [
        ["20", "0.100", "0.100", "0.400", "0.163", "no"],
        ["40", "0.500", "0.167", "0.000", "0.000", "yes", "chosen,", "best"],
    ]
    assert "before training: 0.000, 0.500 behind the chosen (standard error 0.167)" in shown.stdout
    assert "step 60 was validated, but its checkpoint was not kept" in shown.stderr
    assert runner.invoke(app, ["select-checkpoint", str(tmp_path)]).exit_code == 2
