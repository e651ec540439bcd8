"""Turn rewards by tier.

- The order of decision: error, gold, duplicate, soft, read, write, other.
- A reference call is used up once; a refused call uses nothing up, so trying again is paid.
- The safe table pays for reference writes only and never more than 1 in all.
- Arguments are compared deeply: key order, empty values and the order of lists of objects do not matter; ids stay text.
"""

import pytest
from hypothesis import given, strategies as st

from tau2rl.reward.tiers import (
    CALIBRATED,
    DENSE,
    REFERENCE_WRITE,
    CallResult,
    Tier,
    TierTable,
    TurnCalls,
    canonical,
    score_calls,
    turn_rewards,
)
from tau2rl.types import CallTool

KINDS = {"get": "read", "find": "read", "cancel": "write", "book": "write", "transfer": "other"}


def call(name, error=False, **arguments):
    return CallResult(call=CallTool(name=name, arguments=arguments), error=error)


def turn(*calls, malformed=False):
    return TurnCalls(calls=calls, malformed=malformed)


def gold(name, **arguments):
    return CallTool(name=name, arguments=arguments)


def tiers(turns, reference, table=DENSE):
    return [[call.tier for call in calls] for calls in score_calls(turns, reference, KINDS, table)]


def test_each_tier_with_the_dense_values():
    reference = [gold("get", id="1"), gold("book", user="u", flight="F1", cabin="eco", bags=0)]
    turns = [
        turn(),  # message
        turn(call("get", id="1")),  # gold
        turn(call("get", id="1")),  # duplicate
        turn(call("find", q="x")),  # read
        turn(call("cancel", id="9")),  # write
        turn(call("transfer")),  # other
        turn(call("get", error=True, id="404")),  # error
        turn(malformed=True),  # error
        turn(call("book", user="u", flight="F1", cabin="first", bags=3)),  # soft: two of four
        turn(call("book", user="u", flight="F1", cabin="eco", bags=0)),  # gold
    ]
    expected = [0.0, 1.0, -0.2, 0.3, 0.1, 0.0, -0.1, -0.1, 0.5 + 0.5 * 2 / 4, 1.0]
    assert turn_rewards(turns, reference, KINDS, DENSE) == pytest.approx(expected)


def test_calibration_silences_reads_and_turns_extra_writes_negative():
    turns = [turn(call("find", q="x")), turn(call("cancel", id="9"))]
    assert turn_rewards(turns, [], KINDS, CALIBRATED) == [0.0, -0.1]


def test_a_reference_call_that_occurs_twice_is_paid_twice_and_then_is_a_duplicate():
    reference = [gold("cancel", id="1")] * 2
    turns = [turn(call("cancel", id="1"))] * 3
    assert tiers(turns, reference) == [[Tier.GOLD], [Tier.GOLD], [Tier.DUPLICATE]]


def test_a_refused_call_uses_nothing_up():
    turns = [turn(call("cancel", error=True, id="1")), turn(call("cancel", id="1"))]
    assert tiers(turns, [gold("cancel", id="1")]) == [[Tier.ERROR], [Tier.GOLD]]


def test_variations_of_one_call_are_not_paid_again_and_again():
    reference = [gold("book", user="u", flight="F1")]
    turns = [turn(call("book", user="u", flight=f"F{n}")) for n in (7, 8, 9, 1)]
    assert tiers(turns, reference) == [[Tier.SOFT], [Tier.WRITE], [Tier.WRITE], [Tier.GOLD]]


def test_the_right_tool_with_no_argument_right_is_no_match():
    assert tiers([turn(call("cancel", id="2"))], [gold("cancel", id="1")]) == [[Tier.WRITE]]


def test_the_nearest_open_reference_call_counts():
    reference = [gold("book", user="u", flight="F1"), gold("book", user="u", flight="F2", cabin="eco")]
    (calls,) = score_calls([turn(call("book", user="u", flight="F2", cabin="first"))], reference, KINDS, DENSE)
    assert calls[0].value == pytest.approx((1 + 2 / 3) / 2)


def test_calls_of_one_turn_are_added_or_averaged():
    turns = [turn(call("cancel", id="1"), call("find", q="x"))]
    assert turn_rewards(turns, [gold("cancel", id="1")], KINDS, DENSE) == pytest.approx([1.3])
    mean = TierTable(values=DENSE.values, per_turn="mean")
    assert turn_rewards(turns, [gold("cancel", id="1")], KINDS, mean) == pytest.approx([0.65])


def test_reference_write_pays_writes_in_equal_shares_and_reads_nothing():
    reference = [gold("get", id="1"), gold("cancel", id="1"), gold("book", user="u")]
    turns = [turn(call("get", id="1")), turn(call("cancel", id="1")), turn(call("book", user="u")), turn(call("book", user="v"))]
    assert turn_rewards(turns, reference, KINDS, REFERENCE_WRITE) == [0.0, 0.5, 0.5, 0.0]


def test_reference_write_of_a_task_without_writes_pays_nothing():
    assert turn_rewards([turn(call("get", id="1"))], [gold("get", id="1")], KINDS) == [0.0]


@pytest.mark.parametrize(
    ("mine", "reference"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({"a": 1, "note": "", "more": []}, {"a": 1, "other": None}),
        ({"p": [{"n": "x"}, {"n": "y"}]}, {"p": [{"n": "y"}, {"n": "x"}]}),
        ({"p": {"q": [1, 2], "r": {}}}, {"p": {"q": [1, 2]}}),
        ({"a": 2}, {"a": 2.0}),
    ],
)
def test_arguments_that_mean_the_same_match(mine, reference):
    assert canonical(mine) == canonical(reference)


@pytest.mark.parametrize(
    ("mine", "reference"),
    [
        ({"zip": "07001"}, {"zip": "7001"}),
        ({"id": "123"}, {"id": 123}),
        ({"items": ["1", "2"]}, {"items": ["2", "1"]}),  # pairs with another list, position by position
        ({"on": True}, {"on": 1}),
        ({"n": 0}, {"n": None}),
        ({"on": False}, {}),
    ],
)
def test_arguments_that_differ_stay_different(mine, reference):
    assert canonical(mine) != canonical(reference)


def test_numbers_in_text_are_coerced_only_on_request():
    assert canonical({"id": "123"}, coerce_numbers=True) == canonical({"id": 123}, coerce_numbers=True)
    assert canonical({"id": "inf"}, coerce_numbers=True) == {"id": "inf"}


calls = st.builds(
    lambda name, value, error: CallResult(call=CallTool(name=name, arguments={"id": value, "k": "same"}), error=error),
    st.sampled_from(sorted(KINDS)), st.sampled_from(["1", "2", "3"]), st.booleans(),
)  # fmt: skip


@given(
    turns=st.lists(st.builds(TurnCalls, calls=st.lists(calls, max_size=3).map(tuple), malformed=st.booleans()), max_size=12),
    reference=st.lists(calls.map(lambda c: c.call), max_size=5),
)
def test_no_policy_can_earn_more_than_1_from_the_safe_table(turns, reference):
    earned = turn_rewards(turns, reference, KINDS, REFERENCE_WRITE)
    assert len(earned) == len(turns)
    assert sum(r for r in earned) <= 1 + 1e-9
    exact = sum(call.tier is Tier.GOLD for calls in score_calls(turns, reference, KINDS, DENSE) for call in calls)
    assert exact <= len(reference)
