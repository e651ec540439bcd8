"""Validations of a training, as files; pinned here:

- one holds every episode, FAILED ones too, and lies under its step; a later one behind the same step replaces it;
- one that was interrupted leaves nothing that could be taken for one, and the earlier one as it was;
- those of a run of the first format are found in `select/`, and give way to new ones behind the same step;
- no key gets into it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tau2rl.runs import records
from tau2rl.runs.secrets import Redactor
from tau2rl.runs.validation import validations, write_validation
from tau2rl.types import Attempt, Episode, EpisodeRecord, Failure, Fault, Status, StopReason, TaskRef


def failed(task: str, message: str = "gone") -> EpisodeRecord:
    ref = TaskRef(domain="mock", task_id=task, split="base")
    broken = Failure(fault=Fault.USER, kind="UserSimulatorFailure", message=message)
    episode = Episode(
        task=ref,
        seed=1,
        status=Status.FAILED,
        stop_reason=StopReason.FAILED,
        token_ids=(),
        turns=(),
        messages=(),
        grade=None,
        failure=broken,
    )
    return EpisodeRecord(schema=1, run="r", attempt=Attempt(task=ref, index=0, seed=1), tries=1, episode=episode, score=None)


def test_a_validation_holds_every_episode(tmp_path: Path) -> None:
    assert validations(tmp_path) == {}
    for step, tasks in ((20, "abc"), (100000, "a"), (20, "ab")):
        write_validation(tmp_path, step, [failed(task) for task in tasks], redactor=Redactor())
    found = validations(tmp_path)
    assert {step: path.name for step, path in found.items()} == {20: "step_00020.jsonl", 100000: "step_100000.jsonl"}
    assert list(records.read_records(found[20])) == [failed("a"), failed("b")]


def test_an_interrupted_validation_is_none(tmp_path: Path) -> None:
    def torn() -> Iterator[EpisodeRecord]:
        yield failed("a")
        raise KeyboardInterrupt

    write_validation(tmp_path, 20, [failed("z")], redactor=Redactor())
    for step in (20, 40):
        with pytest.raises(KeyboardInterrupt):
            write_validation(tmp_path, step, torn(), redactor=Redactor())
    assert list(validations(tmp_path)) == [20]
    assert list(records.read_records(validations(tmp_path)[20])) == [failed("z")]
    assert [path.name for path in (tmp_path / "val").iterdir()] == ["step_00020.jsonl"]


def test_validations_of_the_first_format_are_found_and_give_way(tmp_path: Path) -> None:
    for step in (20, 40):
        old = write_validation(tmp_path, step, [failed("old")], redactor=Redactor())
        (tmp_path / "select").mkdir(exist_ok=True)
        old.rename(tmp_path / "select" / old.name)
    write_validation(tmp_path, 40, [failed("new")], redactor=Redactor())
    found = validations(tmp_path)
    assert {step: path.parent.name for step, path in found.items()} == {20: "select", 40: "val"}


def test_no_key_gets_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret-1")
    path = write_validation(tmp_path, 1, [failed("a", "401 for sk-very-secret-1")], redactor=Redactor(["MY_KEY"]))
    assert b"sk-very-secret" not in path.read_bytes() and b"[MY_KEY]" in path.read_bytes()
