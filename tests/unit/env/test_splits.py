"""`train-learn` and `train-select`, on tau2's real domains; pinned here:

- they share `train` between them, in its order, and hold no test task; the numbers of tasks;
- which tasks are set apart depends on nothing but domain, ids and kinds: these very ones, on every machine;
- each kind of task has its share of what is set apart: tasks that nothing has to be changed for, intents of telecom;
- they are splits like others: tasks can be listed, opened and written as prompts;
- choosing by test tasks, or by tasks that are trained on, is refused with a way out; training on what is set apart too;
- prompt rows name tasks by their split, so that a rollout opens the same one.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from tau2rl.config import TasksConfig
from tau2rl.env.domain import LEARN, SELECT, domain, set_apart
from tau2rl.env.tasks import describe, held_out, is_test, refuse_held_out, refuse_leak, select, write_prompts
from tau2rl.errors import UserError
from tau2rl.types import TaskRef

AIRLINE = ["5", "20", "27", "46"]


def refs(name: str, split: str) -> list[TaskRef]:
    return select(TasksConfig(domains=(name,), split=split))  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "apart"), [("airline", 4), ("retail", 11), ("telecom", 11)])
def test_the_halves_share_the_training_tasks(name: str, apart: int) -> None:
    loaded = domain(name)
    train, learn, chosen = (list(loaded.tasks(split)) for split in ("train", LEARN, SELECT))
    assert len(chosen) == apart
    assert set(learn) | set(chosen) == set(train) and not set(learn) & set(chosen)
    assert learn == [id for id in train if id not in chosen] and chosen == [id for id in train if id not in learn]
    assert not set(train) & set(loaded.tasks("test"))


def test_the_same_tasks_are_set_apart_everywhere() -> None:
    assert list(domain("airline").tasks(SELECT)) == AIRLINE
    kinds = dict.fromkeys(domain("telecom").tasks("train"), "any")
    shuffled = random.Random(1).sample(list(kinds), len(kinds))
    assert set_apart("telecom", dict.fromkeys(shuffled, "any")) == set_apart("telecom", kinds)
    assert set_apart("retail", kinds) != set_apart("telecom", kinds)


def test_each_kind_has_its_share() -> None:
    telecom = Counter(id.partition("]")[0] for id in domain("telecom").tasks(SELECT))
    assert telecom == {"[mms_issue": 5, "[mobile_data_issue": 4, "[service_issue": 2}  # of 33, 27 and 14
    assert [describe(ref).writes > 0 for ref in refs("airline", SELECT)].count(True) == 2  # of 4; 16 of 30 in `train`
    assert set_apart("a", {"x": "only", "y": "only"}) in ({"x"}, {"y"})


def test_a_domain_without_training_tasks_has_no_halves() -> None:
    assert LEARN not in domain("mock").splits()
    with pytest.raises(UserError, match=f"no such split `{LEARN}` in `mock`"):
        refs("mock", LEARN)


def test_checkpoints_are_not_chosen_by_test_tasks() -> None:
    for split in ("test", "base"):
        with pytest.raises(UserError, match="are test tasks"):
            refuse_leak([], refs("airline", split))
    with pytest.raises(UserError, match="1 of the tasks to choose a checkpoint by are test tasks, among them `mock/synth-test"):
        refuse_leak([], refs("mock", "synth-test")[:1])


def test_checkpoints_are_not_chosen_by_tasks_that_are_trained_on() -> None:
    with pytest.raises(UserError, match="4 of the tasks to choose a checkpoint by are trained on") as refused:
        refuse_leak(refs("airline", "train"), refs("airline", SELECT))
    assert "`train-learn`" in refused.value.hint
    refuse_leak(refs("airline", LEARN), refs("airline", SELECT))
    refuse_leak(refs("mock", "synth-train")[:9], refs("mock", "synth-select")[:9])


def test_what_is_set_apart_is_not_trained_on() -> None:
    apart, learn, test = refs("airline", SELECT)[0], refs("airline", LEARN)[0], refs("airline", "test")[0]
    assert [held_out(ref) for ref in (apart, learn, test)] == [True, False, True]
    assert [is_test(ref) for ref in (apart, learn, test)] == [False, False, True]
    with pytest.raises(UserError, match="a training set must not have them"):
        refuse_held_out([apart])


def test_prompt_rows_name_their_tasks(tmp_path: Path) -> None:
    path = write_prompts(refs("airline", SELECT), tmp_path / "prompts.jsonl")
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [row["input"] for row in rows] == [f"airline/{id}" for id in AIRLINE]
    assert [TaskRef(**row["metadata"]["task"]) for row in rows] == refs("airline", SELECT)
