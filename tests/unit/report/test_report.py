"""The report of a run, and its table.

- Fixed names; numbers worked out by hand over two domains.
- FAILED attempts are counted and shown, never zeros; with one missing the headline is null and `so_far` says what there is.
- A complete domain of an incomplete run keeps its numbers; greedy attempts never mix with sampled ones.
- A resumed run (FAILED first, valid later, in any order) reports what an unbroken one does.
- The floor is weighted by the tasks of the run; records are read once and not kept.
"""

import gc
import json
import random
import weakref
from dataclasses import replace

import pytest

from tau2rl.report.aggregate import Aggregate
from tau2rl.report.estimators import wilson
from tau2rl.report.report import build_report
from tau2rl.report.tables import report_rows
from tau2rl.types import (
    Attempt,
    Checks,
    Episode,
    EpisodeRecord,
    Failure,
    Fault,
    FinishReason,
    Grade,
    Score,
    Status,
    StopReason,
    TaskRef,
    Turn,
    Usage,
)

FLOORS = {"airline": {"do_nothing": 0.5, "always_transfer": 0.25}, "retail": {"do_nothing": 0.0, "always_transfer": 0.0}}


def attempts(domain, tasks, samples, greedy=False):
    refs = [TaskRef(domain=domain, task_id=str(i), split="test") for i in range(tasks)]
    plan = [Attempt(task=ref, index=i, seed=i) for ref in refs for i in range(samples)]
    return plan + [Attempt(task=ref, index=0, seed=0, greedy=True) for ref in refs if greedy]


def record(attempt, solved=False, status=Status.COMPLETED, termination="user_stop", fault=None, partial=0.5, seconds=2.0):
    turn = Turn(
        start=10, end=15, prompt_hash="0", logprobs=None, finish_reason=FinishReason.STOP, actions=(),
        usage=Usage(prompt_tokens=10, completion_tokens=5, cached_tokens=4, cost_usd=0.01),
    )  # fmt: skip
    failed = status is Status.FAILED
    reward = float(solved)
    episode = Episode(
        task=attempt.task, seed=attempt.seed, status=status,
        stop_reason=StopReason.FAILED if failed else StopReason(termination), token_ids=(),
        turns=() if failed else (turn, turn), messages=(), seconds=seconds,
        grade=None if failed else Grade(reward=reward, checks=Checks(db=(solved,)), reward_basis=("DB",)),
        failure=Failure(fault=fault or Fault.INFRA, kind="X", message="") if failed or fault else None,
        user_usage=Usage(prompt_tokens=7, completion_tokens=3),
    )  # fmt: skip
    score = None if failed else Score(task=reward, partial=partial, shaped=reward + 0.1, components={})
    return EpisodeRecord(schema=1, run="r", attempt=attempt, tries=1, episode=episode, score=score)


def report(records, planned, **changes):
    return build_report(records, planned=planned, floors=FLOORS, digest="d1", **changes)


# Two airline tasks with 4 and 1 of 4 solved, two retail tasks with 2 and 0.
PLAN = attempts("airline", 2, 4) + attempts("retail", 2, 4)
SOLVED = [4, 1, 2, 0]
RECORDS = [record(a, solved=a.index < SOLVED[i // 4]) for i, a in enumerate(PLAN)]


def test_the_names_that_others_read():
    r = report(RECORDS, PLAN)
    assert {"tasks", "attempts", "overall", "by_domain", "floor", "episodes", "digest"} <= set(r)
    assert (r["tasks"], r["attempts"], r["digest"]) == (4, 4, "d1")
    names = [f"pass@{k}" for k in (1, 2, 3, 4)] + [f"pass^{k}" for k in (1, 2, 3, 4)]
    assert list(r["overall"]) == names == list(r["by_domain"]["retail"]) == list(r["macro"])
    assert set(r["overall"]["pass@1"]) >= {"value", "ci95"}
    assert r["episodes"] == {"completed": 16, "truncated": 0, "malformed": 0, "failed": 0}
    assert set(r["floor"]) == {"do_nothing", "always_transfer"}
    assert json.loads(json.dumps(r, allow_nan=False)) == r


def test_numbers_worked_out_by_hand():
    r = report(RECORDS, PLAN)
    value = lambda section, name: section[name]["value"]  # noqa: E731
    assert value(r["overall"], "pass@1") == value(r["overall"], "pass^1") == 7 / 16
    assert value(r["overall"], "pass@4") == 3 / 4
    assert value(r["overall"], "pass^4") == 1 / 4
    assert value(r["overall"], "pass@2") == pytest.approx((1 + 1 / 2 + 5 / 6 + 0) / 4)
    assert value(r["by_domain"]["airline"], "pass^2") == pytest.approx((1 + 0) / 2)
    assert value(r["macro"], "pass@1") == pytest.approx((5 / 8 + 2 / 8) / 2)
    assert r["overall"]["pass@4"]["method"] == "wilson"
    assert r["overall"]["pass@1"]["method"] == "wilson, clustered"
    # With half a solved and half an unsolved task: 1, 1/4, 1/2, 0 and half a 1, sum 9/4, sum of squares 29/16, of 5 tasks.
    mean, square = 9 / 20, 29 / 80
    trials = 4 * mean * (1 - mean) / (square - mean**2)
    assert r["overall"]["pass@1"]["ci95"] == pytest.approx(wilson(7 / 16 * trials, trials))
    assert r["overall"]["pass^2"]["method"] == "wilson, clustered"
    # p(1-p)/3 summed over tasks: 0 + 3/48 + 4/48 + 0, root, over 4 tasks
    assert r["overall"]["pass@1"]["rerun_se"] == pytest.approx((7 / 48) ** 0.5 / 4)
    assert not r["incomplete"]
    assert r["reason"] is None
    assert r["so_far"] is None
    assert r["missing"] == 0


def test_macro_is_not_micro_when_domains_differ_in_size():
    plan = attempts("airline", 1, 1) + attempts("retail", 3, 1)
    r = report([record(a, solved=a.task.domain == "airline") for a in plan], plan)
    assert r["overall"]["pass@1"]["value"] == 0.25
    assert r["macro"]["pass@1"]["value"] == 0.5


def test_one_failed_attempt_makes_the_headline_null_and_is_no_zero():
    failed = [
        record(a, status=Status.FAILED, fault=Fault.USER) if a is PLAN[-1] else r for a, r in zip(PLAN, RECORDS, strict=True)
    ]
    r = report(failed, PLAN)
    assert r["incomplete"]
    assert r["reason"] == "1 of 16 attempts missing or failed"
    assert r["overall"]["pass@1"] == {"value": None, "ci95": None, "reason": "1 of 16 attempts missing or failed"}
    assert r["by_domain"]["retail"]["pass@1"]["reason"] == "1 of 8 attempts missing or failed"
    assert r["by_domain"]["airline"]["pass@1"]["value"] == 5 / 8  # everything of airline is there
    assert r["macro"]["pass@1"]["value"] is None
    assert r["partial"]["value"] is None
    assert r["episodes"]["failed"] == 1
    assert r["terminations"]["failed"] == 1
    assert r["faults"]["user"] == 1
    so_far = r["so_far"]
    assert (so_far["tasks"], so_far["attempts"], so_far["not_done"]) == (4, 3, ["retail/1#3"])
    assert so_far["overall"]["pass@1"]["value"] == 7 / 16  # the lost attempt's task: 0 of 3
    assert "pass@4" not in so_far["overall"]
    assert so_far["overall"]["pass@3"]["value"] is not None


def test_a_task_without_any_evidence_is_named_and_left_out_of_so_far():
    r = report([x for x in RECORDS if x.attempt.task.key != "airline/0"], PLAN)
    assert r["missing"] == 4
    assert r["episodes"]["failed"] == 0
    assert r["so_far"]["tasks"] == 3
    assert r["so_far"]["tasks_by_domain"] == {"airline": 1, "retail": 2}
    assert r["so_far"]["overall"]["pass@1"]["value"] == pytest.approx(3 / 12)
    assert r["so_far"]["not_done"][:4] == [f"airline/0#{i}" for i in range(4)]


def test_nothing_done_yet_is_no_number_at_all():
    r = report([], PLAN)
    assert r["overall"]["pass@4"]["value"] is None
    assert r["so_far"]["overall"]["pass@1"]["value"] is None
    assert r["turns"]["mean"] is None
    assert r["missing"] == 16
    assert report([], [])["reason"] == "nothing was planned"


def test_truncated_and_malformed_episodes_are_evidence():
    plan = attempts("retail", 1, 3)
    r = report(
        [
            record(plan[0], solved=True),
            record(plan[1], status=Status.TRUNCATED, termination="turns"),
            record(plan[2], status=Status.MALFORMED, termination="malformed"),
        ],
        plan,
    )
    assert r["episodes"] == {"completed": 1, "truncated": 1, "malformed": 1, "failed": 0}
    assert r["overall"]["pass@1"]["value"] == pytest.approx(1 / 3)
    assert r["terminations"] == {"malformed": 1, "turns": 1, "user_stop": 1}
    assert r["faults"] == {"agent": 2}


def test_greedy_is_kept_apart():
    plan = attempts("retail", 2, 2, greedy=True)
    r = report([record(a, solved=a.greedy) for a in plan], plan)
    assert r["overall"]["pass@1"]["value"] == 0.0
    assert r["attempts"] == 2
    assert r["greedy"]["overall"]["pass@1"]["value"] == 1.0
    assert list(r["greedy"]["overall"]) == ["pass@1", "pass^1"]
    assert report(RECORDS, PLAN)["greedy"] is None


def test_a_lost_greedy_attempt_leaves_the_sampled_numbers_alone():
    plan = attempts("retail", 2, 2, greedy=True)
    r = report([record(a) for a in plan if not a.greedy], plan)
    assert r["incomplete"]
    assert r["overall"]["pass@1"]["value"] == 0.0
    assert r["greedy"]["overall"]["pass@1"]["value"] is None


def test_a_resumed_run_reports_what_an_unbroken_one_does():
    lost = [record(a, status=Status.FAILED) for a in PLAN[3:9]]
    again = [*RECORDS, *lost, *lost]
    random.Random(2).shuffle(again)
    resumed, unbroken = report(again, PLAN), report(RECORDS, PLAN)
    assert resumed.pop("failed_tries") == 12  # counted and shown, though a later try made each of them good
    assert resumed.pop("failures") == [{"fault": "infra", "message": "", "count": 12}]
    assert (resumed.pop("cost")["episodes"], unbroken.pop("cost")["episodes"]) == (28, 16)  # the tries were paid for
    assert {**resumed, "failed_tries": 0, "failures": []} == unbroken


def test_repeated_and_unplanned_records_are_counted_and_not_used():
    stranger = attempts("telecom", 1, 1)[0]
    r = report([*RECORDS, record(PLAN[0]), record(stranger, solved=True)], PLAN)
    assert r["records"] == {"unplanned": 1, "repeated": 1}
    assert r["overall"] == report(RECORDS, PLAN)["overall"]


def test_the_floor_is_weighted_by_the_tasks_of_the_run():
    plan = attempts("airline", 1, 1) + attempts("retail", 3, 1)
    r = report([record(a) for a in plan], plan)
    assert r["floor"] == {"do_nothing": 0.5 / 4, "always_transfer": 0.25 / 4}
    assert r["floor_by_domain"]["airline"] == {"do_nothing": 0.5, "always_transfer": 0.25}
    assert r["tasks_by_domain"] == {"airline": 1, "retail": 3}


def test_a_floor_that_is_not_known_for_every_domain_is_null():
    plan = attempts("airline", 1, 1) + attempts("telecom", 1, 1)
    r = report([record(a) for a in plan], plan)
    assert r["floor"] == {"do_nothing": None, "always_transfer": None}
    assert r["floor_by_domain"]["airline"]["do_nothing"] == 0.5
    assert r["floor_by_domain"]["telecom"]["do_nothing"] is None


def test_tasks_with_writes_have_a_score_of_their_own():
    r = report(RECORDS, PLAN, tasks_with_writes={"airline/1", "retail/0", "retail/99"})
    assert r["tasks_with_writes"]["tasks"] == 2
    assert r["tasks_with_writes"]["pass@1"]["value"] == (1 / 4 + 2 / 4) / 2
    assert report(RECORDS, PLAN, tasks_with_writes=set())["tasks_with_writes"]["pass@1"]["value"] is None
    assert report(RECORDS, PLAN)["tasks_with_writes"] is None


def test_means_and_totals():
    plan = attempts("retail", 1, 2)
    r = report([record(plan[0], solved=True, partial=0.5, seconds=3.0), record(plan[1], partial=None, seconds=1.0)], plan)
    assert r["partial"] == {"value": 0.5, "episodes": 1}
    assert r["shaped"] == {"value": pytest.approx(0.6), "episodes": 2}
    assert r["turns"] == {"mean": 2.0, "max": 2}
    assert r["seconds"] == {"mean": 2.0, "max": 3.0, "total": 4.0}
    assert r["tokens"] == {"sampled": 20, "thought": 0, "prompt": 40, "cached": 16, "user": 20}
    assert r["cost_usd"] == pytest.approx(0.04)


def test_sampled_tokens_are_those_of_the_episode_where_it_has_any():
    (attempt,) = attempts("retail", 1, 1)
    spans = record(attempt)  # two turns of 5
    server_says_9 = tuple(replace(turn, usage=Usage(completion_tokens=9)) for turn in spans.episode.turns)
    with_ids = replace(spans, episode=replace(spans.episode, turns=server_says_9, token_ids=(1, 2, 3)))
    without = replace(with_ids, episode=replace(with_ids.episode, token_ids=()))
    assert report([with_ids], [attempt])["tokens"]["sampled"] == 10
    assert report([without], [attempt])["tokens"]["sampled"] == 18


def test_records_are_read_once_and_not_kept():
    seen = []

    class Tracked(EpisodeRecord):
        pass  # a subclass has __weakref__, which the slotted record lacks

    def stream():
        for r in RECORDS:
            tracked = Tracked(**{f: getattr(r, f) for f in EpisodeRecord.__slots__})
            seen.append(weakref.ref(tracked))
            yield tracked

    aggregate = Aggregate(PLAN)
    for one in stream():
        aggregate.add(one)
    del one
    gc.collect()
    assert len(seen) == 16
    assert all(ref() is None for ref in seen)
    assert sum(count.solved for count in aggregate.sampled.values()) == 7


def test_the_table_shows_domains_then_macro_then_overall():
    rows = report_rows(report(RECORDS, PLAN))
    assert rows[0] == ["domain", "tasks", "pass@1 [95%]", "pass@4", "pass^4", "floor"]
    assert [row[0] for row in rows[1:]] == ["airline", "retail", "macro", "overall"]
    assert rows[-1][1] == "4"
    assert rows[-1][2].startswith("0.438 [0.")
    assert rows[-1][3:] == ["0.750", "0.250", "0.250"]
    assert all(len(row) == len(rows[0]) for row in rows)


def test_the_table_of_an_incomplete_run_marks_what_is_partial():
    plan = attempts("retail", 2, 2, greedy=True)
    rows = report_rows(report([record(a, solved=True) for a in plan[:-1]], plan))
    named = {row[0]: row for row in rows}
    assert named["overall"][2] == "1.000 [0.342, 1.000]"  # all sampled attempts are there
    assert named["greedy: overall"][2] == "-"
    assert named["so far, greedy: overall"][2].startswith("1.000 [")


def test_the_table_of_one_attempt_has_no_columns_for_k():
    plan = attempts("airline", 2, 1)
    rows = report_rows(report([record(a) for a in plan], plan))
    assert rows[0] == ["domain", "tasks", "pass@1 [95%]", "floor"]
    assert rows[1:] == [["airline", "2", "0.000 [0.000, 0.658]", "0.500"], ["overall", "2", "0.000 [0.000, 0.658]", "0.500"]]


def test_a_table_shows_no_text_that_would_move_the_cursor():
    plan = attempts("air\x1b[2J\u202eline", 1, 1)
    rows = report_rows(report([record(a) for a in plan], plan))
    assert rows[1][0] == "air\\x1b[2J\\u202eline"


def test_repetitions_by_hand():
    # Two runs of two attempts: of 8 episodes each the first solves 2 + 1 + 2 + 0, the second 2 + 0 + 0 + 0.
    r = report(RECORDS, PLAN, repetitions=2)
    overall = r["repetitions"]["overall"]
    assert (r["attempts"], r["repetitions"]["count"]) == (2, 2)
    assert list(r["overall"]) == ["pass@1", "pass@2", "pass^1", "pass^2"]
    assert r["overall"]["pass@1"]["value"] == 7 / 16  # of all attempts
    assert overall["pass@1"] == [5 / 8, 2 / 8]
    assert overall["sd"] == pytest.approx(3 / 8 / 2**0.5)
    assert overall["sd_by_attempts"] == pytest.approx((7 / 48) ** 0.5 / 4 * 2**0.5)  # twice the variance of both runs together
    assert r["repetitions"]["by_domain"]["retail"]["pass@1"] == [2 / 4, 0]
    assert [row[3] for row in report_rows(r)] == ["sd of 2 runs", "0.177", "0.354", "-", "0.265"]
    assert report(RECORDS[:-1], PLAN, repetitions=2)["repetitions"] is None
    assert report(RECORDS, PLAN)["repetitions"] is None
