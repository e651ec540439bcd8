"""Who is to blame for an episode: infrastructure, task, user simulator or agent, by rules that anybody can check.

Asked in this order, the first that answers has it: did our world break; is the task on the quarantine list; did the simulated
user break its own rules; else it was the agent, whose failure gets a name from what it did against the reference actions.
A user's mistake is looked for in successes too: a score that leaves out only the failures behind it would be too good.
`is_evidence` is the one rule for which episodes count in a dataset, a loss, a group's mean.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from tau2rl.config import AlgoConfig
from tau2rl.enums import TRANSFER_TOOL
from tau2rl.reward.tiers import canonical
from tau2rl.types import CallTool, Episode, Fault, Message, Status, TaskRef
from tau2rl.verify.rules import ASKS_CONFIRMATION, REPEATS, Call, calls_of, repeated_call, unconfirmed, writes_of
from tau2rl.verify.user_faults import WORDS, Line, UserGates

KNOWN_TASKS = 4096  # whose facts are kept: tens of kilobytes each


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFacts:
    """What the gates know of a task: `TaskFacts(instructions="...", gold=(CallTool(...),), ...)`."""

    instructions: str  # everything that its user was told
    reason: str  # of it, why the user calls, which the first message may say
    gold: tuple[CallTool, ...]  # the agent's side of the reference actions
    user_gold: tuple[str, ...] = ()  # the user's side, by name
    quarantined: str = ""
    domain_policy: str = ""
    tool_kinds: Mapping[str, str] = field(default_factory=dict[str, str])
    user_tools: frozenset[str] = frozenset()
    volunteers: bool = False  # whether the user is told to tell what it knows unasked


@dataclass(frozen=True, slots=True, kw_only=True)
class Blame:
    """Who is to blame, and for what: `Blame(fault=Fault.AGENT, name="wrong_argument", detail="item_ids")`."""

    fault: Fault
    name: str
    detail: str = ""


def blame(episode: Episode, facts: TaskFacts) -> Blame | None:
    """Of an episode without success always something; of a success only what the user or the task did to it."""
    if episode.failure is not None:
        return Blame(fault=episode.failure.fault, name=episode.failure.kind, detail=episode.failure.message[:200])
    if facts.quarantined:
        return Blame(fault=Fault.TASK, name="quarantined", detail=facts.quarantined)
    if (found := next(user_faults(episode, facts), None)) is not None:
        return found
    return None if episode.solved else _of_the_agent(episode, facts)


def user_faults(episode: Episode, facts: TaskFacts) -> Iterator[Blame]:
    """What the simulated user did against its own rules, in order."""
    gates = UserGates(
        instructions=facts.instructions,
        reason=facts.reason,
        domain_policy=facts.domain_policy,
        unfinished=not episode.solved and bool(against_reference(episode, facts)[1] or undone(episode, facts)),
        agent_tools=facts.tool_kinds,
        user_tools=facts.user_tools if episode.trajectory else (),
        volunteers=facts.volunteers,
    )
    for line in lines_of(episode):
        for name, detail in gates.hear(line):
            yield Blame(fault=Fault.USER, name=name, detail=detail)


def is_evidence(episode: Episode, algo: AlgoConfig) -> bool:
    """Whether an episode says something about the policy.

    Not one that FAILED or holds no sampled turn, nor, where `algo` says so, one that was cut off or spoiled.
    """
    if episode.status is Status.FAILED or not episode.turns:
        return False
    if episode.status is Status.TRUNCATED and algo.truncated == "drop":
        return False
    return excluded(episode, algo.exclude_faults) is None


def excluded(episode: Episode, faults: Collection[str]) -> Blame | None:
    """What user or task did to an episode, solved or not, where it is among the faults to leave out; None for what stays."""
    if not faults or episode.failure is not None:
        return None
    found = blame(episode, _kept_facts(episode.task))
    return found if found is not None and found.fault is not Fault.AGENT and found.fault.value in faults else None


@functools.lru_cache(maxsize=KNOWN_TASKS)
def _kept_facts(task: TaskRef) -> TaskFacts:
    return facts_of(task)


def facts_of(ref: TaskRef) -> TaskFacts:
    """The facts of a task of the benchmark."""
    from tau2rl.env.domain import domain
    from tau2rl.env.scripted_user import ALL_AT_ONCE, ONE_LINE_A_MESSAGE, pace
    from tau2rl.env.tasks import gold_actions, quarantined

    loaded = domain(ref.domain)
    task: Any = loaded.task(ref)
    actions = gold_actions(task)
    instructions = task.user_scenario.instructions
    return TaskFacts(
        instructions=f"{task.user_scenario} {task.initial_state}",
        reason=str(getattr(instructions, "reason_for_call", instructions)),
        gold=tuple(CallTool(name=a.name, arguments=dict(a.arguments)) for a in actions if a.requestor == "assistant"),
        user_gold=tuple(a.name for a in actions if a.requestor == "user"),
        quarantined=quarantined(ref),
        domain_policy=loaded.policy,
        tool_kinds=loaded.tool_types,
        user_tools=frozenset(schema["function"]["name"] for schema in loaded.user_tool_schemas),
        volunteers=pace(task)[0] in (ALL_AT_ONCE, ONE_LINE_A_MESSAGE),
    )


def _of_the_agent(episode: Episode, facts: TaskFacts) -> Blame:
    calls = list(calls_of(episode.messages))
    kinds = facts.tool_kinds
    extra, missing = against_reference(episode, facts)
    if episode.status is Status.MALFORMED:
        return _agent("malformed", next((str(turn.malformed) for turn in episode.turns[::-1] if turn.malformed), ""))
    if looped := repeated_call(calls) or (_repeated_words(episode.messages) if episode.status is Status.TRUNCATED else ""):
        return _agent("loop", looped)
    if episode.status is Status.TRUNCATED:
        return _agent("truncated", episode.stop_reason.value)
    if foreign := [call.call.name for call in calls if call.call.name in facts.user_tools and call.call.name not in kinds]:
        return _agent("tool_ownership", foreign[0])
    if any(c.call.name == TRANSFER_TOOL for c in calls) and not any(c.name == TRANSFER_TOOL for c in facts.gold):
        return _agent("premature_transfer", ", ".join(c.name for c in missing))
    if ASKS_CONFIRMATION in facts.domain_policy.lower() and (hasty := unconfirmed(episode.messages, extra)):
        return _agent("write_without_confirmation", hasty[0].call.name)
    if (wrong := _by_writes([call.call for call in extra], missing)) is not None:
        return wrong
    if looped := _repeated_words(episode.messages):
        return _agent("loop", looped)
    return _by_what_is_missing(episode, calls, missing, facts)


def _by_writes(extra: Sequence[CallTool], missing: Sequence[CallTool]) -> Blame | None:
    for made in extra:
        for wanted in missing:
            if made.name == wanted.name:
                a, b = canonical(made.arguments), canonical(wanted.arguments)
                return _agent("wrong_argument", f"{made.name}: " + ", ".join(k for k in sorted({*a, *b}) if a.get(k) != b.get(k)))
    if extra and missing:
        return _agent("wrong_tool", f"{extra[0].name} for {missing[0].name}")
    return _agent("extra_write", extra[0].name) if extra else None


def _by_what_is_missing(episode: Episode, calls: Sequence[Call], missing: Sequence[CallTool], facts: TaskFacts) -> Blame:
    """No write is wrong: one was not made, the user was left alone with what it found, or something was not said."""
    acted = any(line.who == "user" and line.calls for line in lines_of(episode))
    left = [*(call.name for call in missing), *undone(episode, facts)]
    if acted and left:
        return _agent("missing_follow_up", ", ".join(left))
    if left and not calls:
        return _agent("gave_up", ", ".join(left))
    if missing:
        return _agent("missing_write", missing[0].name)
    checks = episode.grade.checks if episode.grade is not None else None
    if checks is not None and not all(checks.communicate):
        return _agent("missing_information")
    return _agent("other")


def against_reference(episode: Episode, facts: TaskFacts) -> tuple[list[Call], list[CallTool]]:
    """The writes that no reference write explains, and the reference writes that were not made."""
    left = [call for call in facts.gold if facts.tool_kinds.get(call.name) == "write"]
    extra: list[Call] = []
    for call in writes_of(calls_of(episode.messages), facts.tool_kinds):
        same = next(
            (g for g in left if g.name == call.call.name and canonical(g.arguments) == canonical(call.call.arguments)), None
        )
        if same is None:
            extra.append(call)
        else:
            left.remove(same)
    return extra, left


def _repeated_words(messages: Sequence[Message]) -> str:
    """What the agent said again and again; behind a wrong write it is no reason of its own: the user waits for the right one."""
    words = Counter(m.content.strip().lower() for m in messages if m.role == "assistant" and len(m.content.strip()) > WORDS)
    return next((text[:100] for text, count in words.items() if count >= REPEATS), "")


def lines_of(episode: Episode) -> Iterator[Line]:
    """What both sides said, called and got back, in order; calls of the user are known from a trajectory alone."""
    if not episode.trajectory:
        for message in episode.messages:
            calls = tuple(call.name for call in message.tool_calls)
            yield Line(who={"assistant": "agent"}.get(message.role, message.role), text=message.content, calls=calls)
    for message in episode.trajectory:
        role = str(message.get("role"))
        calls = tuple(str(call.get("name")) for call in _tool_calls(message))
        yield Line(who={"assistant": "agent"}.get(role, role), text=str(message.get("content") or ""), calls=calls)


def undone(episode: Episode, facts: TaskFacts) -> list[str]:
    """What the user was to do in the references, and did not do as often."""
    made = Counter(name for line in lines_of(episode) if line.who == "user" for name in line.calls)
    return list((Counter(facts.user_gold) - made).elements())


def _tool_calls(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    return cast("list[dict[str, Any]]", message.get("tool_calls") or [])


def _agent(name: str, detail: str = "") -> Blame:
    return Blame(fault=Fault.AGENT, name=name, detail=detail)
