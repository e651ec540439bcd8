"""Which checkpoint is kept; pinned here:

- the fewest steps within one standard error of the best, the error being that of the paired difference over tasks;
- of equals the earliest is the best, and is chosen;
- a checkpoint that is clearly worse is not chosen, however early; what is worse on every task alike is clearly worse;
- all numbers are of the tasks that every checkpoint has evidence on; too few of them, or no success at all, is refused;
- the order in which checkpoints or tasks come changes nothing.
"""

from __future__ import annotations

import math

import pytest
from hypothesis import given, strategies as st

from tau2rl.errors import UserError
from tau2rl.report.selection import CheckpointChoice, choose_checkpoint


def shares(text: str) -> dict[str, float]:
    """`1`, `0` and `h` (half of the attempts) a task."""
    return {f"mock/{i}": {"1": 1.0, "0": 0.0, "h": 0.5}[mark] for i, mark in enumerate(text)}


def chosen(**by_step: str) -> CheckpointChoice:
    return choose_checkpoint({int(step[1:]): shares(text) for step, text in by_step.items()})


def test_the_earliest_within_one_standard_error_is_chosen() -> None:
    choice = chosen(s20="1000000000", s40="1111100000", s60="1111111000")
    assert (choice.best, choice.chosen) == (60, 60)
    early, middle, best = choice.candidates
    # 40 is behind on 2 of 10 tasks: mean .2, standard error sqrt((2 * .8^2 + 8 * .2^2) / 90) = .1333
    assert (middle.gap, middle.gap_se, middle.within) == (pytest.approx(0.2), pytest.approx(math.sqrt(1.6 / 90)), False)
    # 7 of 10 solved: sqrt((7 * .3^2 + 3 * .7^2) / 90) = .1528
    assert (best.success, best.se, best.gap, best.within) == (0.7, pytest.approx(math.sqrt(2.1 / 90)), 0.0, True)
    assert not early.within


def test_a_gap_that_could_be_luck_does_not_keep_a_later_one() -> None:
    choice = chosen(s20="1111110001", s40="1111111110", s60="0000000001")
    # 20 against 40: behind on 3 tasks, ahead on 1: mean .2, sqrt((3 * .8^2 + 1.2^2 + 6 * .2^2) / 90) = .2
    assert (choice.best, choice.chosen) == (40, 20)
    assert choice.candidates[0].gap == pytest.approx(0.2) and choice.candidates[0].gap_se == pytest.approx(0.2)


def test_pairing_sees_what_two_separate_errors_would_hide() -> None:
    # 4 of 20 tasks are half a success behind: mean .1, standard error sqrt((4 * .4^2 + 16 * .1^2) / 380) = .0459.
    choice = chosen(s20="hhhh111111" + "0" * 10, s40="1111111111" + "0" * 10)
    early, best = choice.candidates
    assert (early.gap, early.gap_se) == (pytest.approx(0.1), pytest.approx(math.sqrt(0.8 / 380)))
    assert best.se == pytest.approx(math.sqrt(5 / 380)) and best.se > early.gap  # 10 of 20 solved: alone it would not tell
    assert choice.chosen == 40


def test_a_gap_that_is_the_same_on_every_task_is_no_luck() -> None:
    choice = chosen(s20="0" * 8, s40="h" * 8)
    assert (choice.chosen, choice.candidates[0].gap, choice.candidates[0].gap_se) == (40, 0.5, 0.0)


def test_of_equals_the_earliest_is_best_and_chosen() -> None:
    choice = chosen(s60="0110", s20="1001", s40="1001")
    assert (choice.best, choice.chosen) == (20, 20)
    assert all(one.within for one in choice.candidates)


def test_one_task_has_no_error_and_only_ties_are_within() -> None:
    choice = chosen(s20="0", s40="1", s60="1")
    assert (choice.best, choice.chosen, choice.candidates[0].gap_se) == (40, 40, None)


def test_tasks_without_evidence_are_left_out_for_all() -> None:
    whole = shares("1111100000")
    holed = {key: value for key, value in shares("1111110000").items() if key != "mock/0"}
    choice = choose_checkpoint({20: whole, 40: holed})
    assert choice.left_out == ("mock/0",) and len(choice.tasks) == 9
    assert [one.success for one in choice.candidates] == [pytest.approx(4 / 9), pytest.approx(5 / 9)]
    with pytest.raises(UserError, match="only 8 of 10 tasks have evidence at every checkpoint"):
        choose_checkpoint({20: whole, 40: {key: holed[key] for key in list(holed)[:8]}})


def test_nothing_to_choose_by_is_refused() -> None:
    with pytest.raises(UserError, match="no checkpoint solved any"):
        chosen(s20="0000", s40="0000")
    with pytest.raises(UserError, match="no checkpoint to choose from"):
        choose_checkpoint({})


@given(
    st.lists(st.text("10h", min_size=6, max_size=6), min_size=1, max_size=5).filter(lambda rows: any("1" in row for row in rows)),
    st.randoms(use_true_random=False),
)
def test_order_changes_nothing_and_the_rule_holds(rows: list[str], shuffle: object) -> None:
    results = {10 * (i + 1): shares(row) for i, row in enumerate(rows)}
    choice = choose_checkpoint(results)
    items = [(step, dict(sorted(values.items(), reverse=True))) for step, values in results.items()]
    shuffle.shuffle(items)  # type: ignore[attr-defined]
    assert choose_checkpoint(dict(items)) == choice
    within = [one.step for one in choice.candidates if one.within]
    assert choice.chosen == min(within) and choice.best in within
    assert max(one.success for one in choice.candidates) == next(
        one.success for one in choice.candidates if one.step == choice.best
    )
