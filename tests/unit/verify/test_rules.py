"""What the `rules` verifier sees in a conversation: each rule is broken by a planted conversation, and by no other one.

- a conversation by the book, with the real policy of its domain, breaks none;
- every rule has a conversation that breaks it and nothing else;
- rules that a policy does not have are not asked for.
"""

from __future__ import annotations

import pytest

from tau2rl.env.domain import domain
from tau2rl.types import CallTool, Message, Status, Transcript
from tau2rl.verify.rules import consents, violations

WHO = CallTool(name="find_user_id_by_email", arguments={"email": "a@b.com"})
LOOK = CallTool(name="get_order_details", arguments={"order_id": "#W1234567"})
CANCEL = CallTool(name="cancel_pending_order", arguments={"order_id": "#W1234567", "reason": "no longer needed"})
TRANSFER = CallTool(name="transfer_to_human_agents", arguments={"summary": "s"})
HOLD = "YOU ARE BEING TRANSFERRED TO A HUMAN AGENT. PLEASE HOLD ON."


def user(text: str) -> Message:
    return Message(role="user", content=text)


def says(text: str) -> Message:
    return Message(role="assistant", content=text)


def calls(*made: CallTool, result: str = "{}", error: bool = False, text: str = "") -> tuple[Message, ...]:
    results = (Message(role="tool", content=result, error=error) for _ in made)
    return (Message(role="assistant", content=text, tool_calls=made), *results)


ASK = (says("Hi! How can I help you today?"), user("Cancel order #W1234567, I am a@b.com."))
PROPOSE = (says("I would cancel order #W1234567 because it is no longer needed. Do you confirm (yes)?"), user("Yes, go ahead."))
END = (says("Your order has been cancelled. Anything else?"), user("No, thanks."))
GOOD = (*ASK, *calls(WHO), *calls(LOOK), *PROPOSE, *calls(CANCEL), *END)


def broken(messages: tuple[Message, ...], name: str = "retail", status: Status = Status.COMPLETED) -> list[str]:
    loaded = domain(name)
    kinds = dict(loaded.tool_types)
    return violations(
        Transcript(
            domain=name, domain_policy=loaded.policy, tools=loaded.tools, messages=messages, tool_kinds=kinds, status=status
        )
    )


def test_a_conversation_by_the_book_breaks_no_rule() -> None:
    assert broken(GOOD) == []


@pytest.mark.parametrize(
    ("rule", "messages"),
    [
        ("refused_call", (*ASK, *calls(WHO), *calls(LOOK, error=True), says("I cannot find it."))),
        ("repeated_call", (*ASK, *calls(WHO), *calls(LOOK), *calls(LOOK), *calls(LOOK), *PROPOSE, *calls(CANCEL), *END)),
        ("several_calls", (*ASK, *calls(WHO, LOOK), *PROPOSE, *calls(CANCEL), *END)),
        ("several_calls", (*ASK, *calls(WHO, text="One moment."), *PROPOSE, *calls(CANCEL), *END)),
        ("unauthenticated_write", (*ASK, *calls(LOOK), *PROPOSE, *calls(CANCEL), *END)),
        ("unconfirmed_write", (*ASK, *calls(WHO), *calls(CANCEL), *END)),
        ("unconfirmed_write", (*ASK, *calls(WHO), says("Cancel?"), user("No, wait, yes or no?"), *calls(CANCEL), *END)),
        ("promised_not_done", (*ASK, *calls(WHO), *PROPOSE, *END)),
        ("transfer_untried", (*ASK, *calls(TRANSFER), says(HOLD))),
        ("transfer_unsaid", (*ASK, *calls(WHO), *calls(TRANSFER), says("Bye."))),
        ("transfer_unsaid", (*ASK, *calls(WHO), says(HOLD))),
        ("invented_fact", (*ASK, *calls(WHO), says("It goes to gift_card_8887776. Fine?"), user("Yes"), *calls(CANCEL), *END)),
    ],
)
def test_a_planted_conversation_breaks_its_rule_and_no_other(rule: str, messages: tuple[Message, ...]) -> None:
    assert broken(messages) == [rule]


def test_what_was_cut_off_is_not_finished() -> None:
    assert broken(GOOD[:3], status=Status.TRUNCATED) == ["unfinished"]


def test_a_call_that_succeeds_in_the_end_was_no_refusal() -> None:
    assert broken((*ASK, *calls(WHO), *calls(LOOK, error=True), *calls(LOOK), *PROPOSE, *calls(CANCEL), *END)) == []


def test_what_a_tool_returned_may_be_said() -> None:
    paid = calls(LOOK, result='{"payment": "gift_card_8887776", "total": 128.5}')
    assert (
        broken((*ASK, *calls(WHO), *paid, says("$128.50 go to gift_card_8887776. Fine?"), user("Yes"), *calls(CANCEL), *END))
        == []
    )


def test_rules_that_a_policy_does_not_have_are_not_asked_for() -> None:
    done = CallTool(name="update_task_status", arguments={"task_id": "task_1", "status": "completed"})
    conversation = (user("Please complete task_1."), *calls(done, text="Sure."), says("Done. Anything else?"))
    assert broken(conversation, "mock") == []


@pytest.mark.parametrize(
    ("text", "agrees"),
    [
        ("Yes, please.", True), ("That's correct, go ahead", True), ("Sounds good!", True), ("ok", True),
        ("No, use my other card.", False), ("Actually, yes but change the size", False), ("What would it cost?", False),
    ],
)  # fmt: skip
def test_consent(text: str, agrees: bool) -> None:
    assert consents(text) == agrees
