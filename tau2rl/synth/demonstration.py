"""A reference conversation of a composed task: the agent asks for what it needs, looks things up, and confirms before each write.

It is for `tau2rl seed` with the gold teacher, in the form that `env/task_files.py` reads; the scripted user answers it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from tau2rl.synth.affordances import Affordances
from tau2rl.synth.compose import Composed
from tau2rl.synth.rules import RuleBook
from tau2rl.synth.texts import NOT_KNOWN, Text
from tau2rl.types import CallTool

FOUND = (
    "Thank you, {name}, I have found your account. What else can I do for you?",
    "Thank you, {name}. Is there anything else?",
)
NUMBER = ("Do you have the number of that {entity}?", "Could you tell me the number of that {entity}?")
MORE = ("Noted. Is there anything else?", "All right, and what else can I do for you?", "I have that. Anything else?")
CONFIRM = (
    "This is what I will do: {what}. Do you confirm (yes or no)?",
    "I will now {what}. Shall I go ahead (yes or no)?",
    "If you agree, I will {what}. Is that right (yes or no)?",
)
DONE = ("That is done.", "Everything is done now.", "All of that is done.")


def demonstrate(
    made: Composed, text: Text, calls: Sequence[tuple[str, CallTool]], *, domain: Affordances, book: RuleBook, rng: random.Random
) -> list[dict[str, str]]:
    """The steps; `calls` are the reference actions by their ids: first who it is, then the reads, then the writes."""
    lines = text.known if text.behaviour["pace"] != "all_at_once" else ()
    return [
        *_listen(made, lines, calls[0][0], domain, rng),
        *_act(made, calls[1:], domain, rng),
        {"say": _last_words(made, book, rng)},
    ]


def _listen(
    made: Composed, lines: Sequence[str], identify: str, domain: Affordances, rng: random.Random
) -> Iterator[dict[str, str]]:
    """Ask for a line at a time until there are no more; look the customer up as soon as they said who they are."""
    known = lines.index(made.identity.say) + 1 if lines else 0
    for number in range(known):
        yield {"say": domain.manners.identify_again if number else rng.choice(domain.manners.identify)}
    yield {"action": identify}
    name = domain.rows["users"][made.user_id]["name"]["first_name"]
    entity = domain.table.removesuffix("s")
    not_known = {words.format(entity=entity) for words in NOT_KNOWN}
    for number in range(known, len(lines) + 1 if lines else 0):
        if number < len(lines) and lines[number] in not_known:
            heard = f"Thank you, {name}, I have found your account." if number == known else "Noted."
            yield {"say": f"{heard} {rng.choice(NUMBER).format(entity=entity)}"}
        else:
            yield {"say": rng.choice(FOUND).format(name=name) if number == known else rng.choice(MORE)}


def _act(
    made: Composed, calls: Sequence[tuple[str, CallTool]], domain: Affordances, rng: random.Random
) -> Iterator[dict[str, str]]:
    for id, call in calls:
        if call in made.writes:
            what = rng.choice(CONFIRM).format(what=domain.in_words(made.user_id, call))
            yield {"say": f"{domain.manners.cautions.get(call.name, '')}{what}"}
        yield {"action": id}


def _last_words(made: Composed, book: RuleBook, rng: random.Random) -> str:
    refused = [f"I am sorry, but {book.refusal(r.breaks).format(entity=r.entity)}." for r in made.requests if r.breaks]
    done = [rng.choice(DONE)] if made.writes else []
    answer = [f"The amount that you asked for is ${made.question.value}."] if made.question else []
    return " ".join([*refused, *done, *answer, "Is there anything else?"])
