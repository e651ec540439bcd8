"""What a conversation shows of broken rules to anybody who knows the domain's policy and tools, whatever the task was.

Rules that only some policies have (authentication, confirmation, one call at a time) are looked for in the policy's own words.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from tau2rl.enums import TRANSFER_TOOL
from tau2rl.types import CallTool, Message, Status, Transcript

TRANSFERRED = "YOU ARE BEING TRANSFERRED TO A HUMAN AGENT"
ASKS_CONFIRMATION, ASKS_AUTHENTICATION, ONE_CALL = (
    "explicit user confirmation",
    "authenticate the user",
    "one tool call at a time",
)
CONSENT = re.compile(
    r"\b(yes|yeah|yep|yup|sure|correct|confirm(ed)?|go ahead|proceed|please do|do it|ok(ay)?|absolutely|agreed?|sounds good"
    r"|that'?s (right|fine|good|great|perfect)|looks (good|right|correct)|perfect|fine)\b",
    re.IGNORECASE,
)
REFUSAL = re.compile(r"\b(no|nope|don'?t|do not|not yet|wait|hold on|stop|instead|actually)\b", re.IGNORECASE)
DEED = re.compile(
    r"\b(?:ha(?:s|ve) been|is now|are now|i(?:'ve| have)(?: (?:just|now|successfully|also))?|successfully)\s+"
    r"(?:successfully |now )?(?:cancel+ed|updated|modified|changed|exchanged|returned|booked|created|processed"
    r"|refunded|completed|set|added|issued|sent|enabled|disabled|resumed|suspended|refueled|marked)\b|^(?:all )?done\b",
    re.IGNORECASE,
)
FACT = re.compile(r"#?\b(?=[\w-]*\d)[A-Za-z]*[\w-]{4,}\b|\b[\w.+-]+@[\w-]+\.\w+\b")  # an id, a code, an e-mail address
LONGEST = 4000  # characters of a message that are looked through: what a pattern takes grows with their square
RULES = (
    "unfinished", "refused_call", "repeated_call", "several_calls", "unauthenticated_write", "unconfirmed_write",
    "promised_not_done", "transfer_untried", "transfer_unsaid", "invented_fact",
)  # fmt: skip
REPEATS = 3  # the same call with the same arguments, or the same words, so often is a loop


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A tool call with what became of it, and where it stands: `Call(call=..., error=False, at=4)`."""

    call: CallTool
    error: bool
    at: int  # index of its message


def violations(transcript: Transcript) -> list[str]:
    """The names of the rules that were broken, each once, in the order of the rules."""
    calls = list(calls_of(transcript.messages))
    writes = writes_of(calls, transcript.tool_kinds)
    policy = transcript.domain_policy.lower()
    found = {
        "unfinished": transcript.status is not Status.COMPLETED,
        "refused_call": _refused(calls),
        "repeated_call": bool(repeated_call(calls)),
        "several_calls": ONE_CALL in policy and _several(transcript.messages),
        "unauthenticated_write": ASKS_AUTHENTICATION in policy and _unauthenticated(calls, writes, transcript),
        "unconfirmed_write": ASKS_CONFIRMATION in policy and bool(unconfirmed(transcript.messages, writes)),
        "promised_not_done": _promised(transcript.messages, writes),
        "transfer_untried": _untried_transfer(calls, transcript),
        "transfer_unsaid": TRANSFERRED.lower() in policy and _unsaid_transfer(calls, transcript.messages),
        "invented_fact": any(True for _ in invented(transcript.messages, transcript.domain_policy)),
    }
    return [name for name in RULES if found[name]]


def calls_of(messages: Iterable[Message]) -> Iterator[Call]:
    """Every call with its result; results follow the message that called, in the order of its calls."""
    listed = list(messages)
    for at, message in enumerate(listed):
        results = _results_behind(listed, at)
        for call in message.tool_calls:
            result = next(results, None)
            yield Call(call=call, error=result is not None and result.error, at=at)


def writes_of(calls: Iterable[Call], kinds: Mapping[str, str]) -> list[Call]:
    """The calls that changed the database: of a tool that writes, and not refused."""
    return [call for call in calls if not call.error and kinds.get(call.call.name) == "write"]


def repeated_call(calls: Iterable[Call]) -> str:
    """The name of a tool that was called `REPEATS` times with the same arguments; "" where none was."""
    keys = Counter((c.call.name, json.dumps(c.call.arguments, sort_keys=True, default=str)) for c in calls)
    return next((name for (name, _), count in keys.items() if count >= REPEATS), "")


def unconfirmed(messages: tuple[Message, ...], writes: Iterable[Call]) -> list[Call]:
    """The writes before which the user's last words were no consent to what the agent had proposed."""
    out: list[Call] = []
    for write in writes:
        said = [m.content for m in messages[: write.at] if m.role == "user"]
        if len(said) < 2 or not consents(said[-1]):  # the first words ask; they cannot answer a proposal
            out.append(write)
    return out


def consents(text: str) -> bool:
    """Whether words of a user agree to what was proposed.

    >>> consents("Yes, please go ahead."), consents("No, use the other card instead."), consents("My zip code is 10001.")
    (True, False, False)
    """
    first = text[:200]
    agreed, refused = CONSENT.search(first), REFUSAL.search(first)
    return agreed is not None and (refused is None or agreed.start() < refused.start())


def invented(messages: tuple[Message, ...], domain_policy: str) -> Iterator[str]:
    """Ids, codes and addresses that the agent wrote and that stood nowhere before: not said, not returned, not in the policy."""
    known = domain_policy.lower()
    for message in messages:
        if message.role == "assistant":
            for fact in FACT.findall(message.content[:LONGEST]):
                if fact.lower().lstrip("#") not in known and not _is_plain_number(fact):
                    yield fact
        known += "\n" + message.content.lower()


def _is_plain_number(fact: str) -> bool:
    """Prices, times and dates are worked out and written anew; they prove nothing."""
    return re.fullmatch(r"[\d\W_]+(?:am|pm|st|nd|rd|th|kg|gb|mb|min|h)?", fact, re.IGNORECASE) is not None


def _results_behind(messages: list[Message], at: int) -> Iterator[Message]:
    for message in messages[at + 1 :]:
        if message.role != "tool":
            return
        yield message


def _refused(calls: list[Call]) -> bool:
    """A call failed, and no later call of the same tool succeeded."""
    return any(
        call.error and not any(later.call.name == call.call.name and not later.error and later.at > call.at for later in calls)
        for call in calls
    )


def _several(messages: tuple[Message, ...]) -> bool:
    return any(len(m.tool_calls) > 1 or (m.tool_calls and m.content.strip()) for m in messages if m.role == "assistant")


def _unauthenticated(calls: list[Call], writes: list[Call], transcript: Transcript) -> bool:
    """A write before anything of the user was looked up successfully."""
    looked = [c.at for c in calls if not c.error and transcript.tool_kinds.get(c.call.name) == "read" and "user" in c.call.name]
    return any(not looked or write.at < looked[0] for write in writes)


def _promised(messages: tuple[Message, ...], writes: list[Call]) -> bool:
    """The agent says that something was done, and nothing was, up to then."""
    return any(
        message.role == "assistant" and DEED.search(message.content.strip()) and not any(write.at < at for write in writes)
        for at, message in enumerate(messages)
    )


def _untried_transfer(calls: list[Call], transcript: Transcript) -> bool:
    """A transfer to a human before anything was looked up or tried."""
    names = [call.call.name for call in calls]
    return TRANSFER_TOOL in names and not any(
        transcript.tool_kinds.get(n) in ("read", "write") for n in names[: names.index(TRANSFER_TOOL)]
    )


def _unsaid_transfer(calls: list[Call], messages: tuple[Message, ...]) -> bool:
    transfers = [call.at for call in calls if call.call.name == TRANSFER_TOOL and not call.error]
    said = [at for at, m in enumerate(messages) if m.role == "assistant" and TRANSFERRED in m.content.upper()]
    done = bool(transfers) and messages[-1].role == "tool"  # the call itself ended the conversation
    return not done and bool(transfers) != bool(said)
