"""A composed task in words: its user's text, which the scripted user says line by line, and the reference conversation with it.

Everything that the user says is in `reason_for_call` and in the lines of `known_info`; `task_instructions` says how they behave.
In the reference conversation the agent asks for what it needs, looks things up, and confirms before each write; it is for
`tau2rl seed` with the gold teacher, in the form that `env/task_files.py` reads.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tau2rl.env.scripted_user import ALL_AT_ONCE, ONE_LINE_A_MESSAGE, ONE_LINE_A_QUESTION
from tau2rl.synth.compose import Composed, Withdrawn
from tau2rl.synth.request import Affordances, Request
from tau2rl.synth.rules import RuleBook
from tau2rl.types import CallTool

PACES = {"all_at_once": ALL_AT_ONCE, "bit_by_bit": ONE_LINE_A_MESSAGE, "when_asked": ONE_LINE_A_QUESTION}
STYLES = {
    "plain": "You are polite and to the point.",
    "terse": "You write short messages, without pleasantries.",
    "chatty": "You are friendly and talkative, but you make up no facts about yourself, your {table} or your wishes.",
    "impatient": "You are in a hurry and let it show, without being rude.",
}
OPENINGS = {
    "plain": ("Hello, I'd like to", "Hi, I would like to", "Good morning, I want to", "Hi there, I'd like to"),
    "terse": ("I need to", "I want to", "I have to"),
    "chatty": (
        "Hi! I hope your day is going well. I'd love some help: I want to", "Hello there, thanks for picking up! I'd like to",
        "Hey, finally a friendly voice. Well, here is my story: I want to",
    ),
    "impatient": (
        "Hi, I don't have much time. I need to", "I'm in a rush, so let's be quick: I have to", "Quickly, please: I want to",
    ),
}  # fmt: skip
MORE = {  # enough for every further line of a text, so that nobody says the same twice
    "plain": (
        "I'd also like to", "I also want to", "Besides that, I'd like to", "And I want to", "I would like to",
        "In addition, I need to",
    ),
    "terse": ("Also, I need to", "And I want to", "Next, I need to", "I also have to", "Then I want to", "Plus, I need to"),
    "chatty": (
        "Oh, and while we're at it, I'd like to", "If you don't mind, I'd also like to", "I nearly forgot: I want to",
        "And since you're so helpful, I'd like to", "Besides that, I'd love to", "Oh, and I also want to",
    ),
    "impatient": (
        "Next, I need to", "Then I have to", "And I need to", "Also, and quickly, I need to", "I also need to",
        "On top of that, I have to",
    ),
}  # fmt: skip
LATER = (  # at the end of a line
    ", but only after the other {change} to the same {entity}.",
    ". Please do that when the other {change} to the same {entity} {done} done.",
)
ASK = ("Please also tell me {question}.", "I'd also like to know {question}.", "And could you tell me {question}?")
OWN = "If the agent says that something cannot be done, accept that, and take no alternative that is offered instead."
CORRECT = "You get one thing wrong at first and put it right by the next line, before you agree to anything."
TAKEN_BACK = (
    "On second thought, please forget about that last one.",
    "I have changed my mind about that last one. Please leave it.",
    "Actually, never mind that last one.",
)
CHANGES_MIND = (
    "At first you also ask for one thing that you take back by the next line. From then on you do not want it any more, and you "
    "say no where the agent is about to do it."
)
NOT_KNOWN = (
    "I don't know the number of that {entity}, I'm afraid. You would have to look it up.",
    "Sorry, I don't have the number of that {entity} at hand. Could you look it up?",
    "I couldn't tell you the number of that {entity}. Please find it in my account.",
)
DOES_NOT_KNOW = "When the agent asks you for the number of an {entity}, you do not know it, and ask the agent to look it up."
TWISTS = ("none", "corrected", "changes_mind", "does_not_know")
TWISTED = 0.5  # share of the texts with another twist than `none`, of those that can have one
CONFIRM = (
    "When the agent describes what it is about to do, say yes if it is what you asked for, and say what is wrong if it is not. "
    "Ask for nothing else, and agree to nothing else."
)
STOP = "When everything was dealt with and every question of yours was answered, end the conversation."
# What the agent of a reference conversation says.
FOUND = (
    "Thank you, {name}, I have found your account. What else can I do for you?",
    "Thank you, {name}. Is there anything else?",
)
ASK_NUMBER = ("Do you have the number of that {entity}?", "Could you tell me the number of that {entity}?")
ANYTHING_ELSE = ("Noted. Is there anything else?", "All right, and what else can I do for you?", "I have that. Anything else?")
ASK_TO_CONFIRM = (
    "This is what I will do: {what}. Do you confirm (yes or no)?",
    "I will now {what}. Shall I go ahead (yes or no)?",
    "If you agree, I will {what}. Is that right (yes or no)?",
)
DONE = ("That is done.", "Everything is done now.", "All of that is done.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A task's words: `Text(reason="Hi, I'd like to ...", known=("My name is ...",), unknown="...", instructions="...", ...)`."""

    reason: str
    known: tuple[str, ...]
    unknown: str
    instructions: str
    persona: str | None = None  # tau2's own, beside the instructions
    behaviour: dict[str, str]  # {"pace": "bit_by_bit", "style": "terse", "twist": "corrected", "identity": "email"}

    def scenario(self, domain: str) -> dict[str, Any]:
        """tau2's user scenario as JSON values."""
        instructions = {
            "domain": domain,
            "reason_for_call": self.reason,
            "known_info": "\n".join(self.known),
            "unknown_info": self.unknown,
            "task_instructions": self.instructions,
        }
        return {"persona": self.persona, "instructions": instructions}

    @property
    def spoken(self) -> str:
        """All that the user has to say."""
        return "\n".join((self.reason, *self.known))


def user_text(made: Composed, table: str, rng: random.Random, twists: Sequence[str] = TWISTS) -> Text:
    """One of the ways in which this user could talk; `table`: what users have, "orders"."""
    pace, style = rng.choice(sorted(PACES)), rng.choice(sorted(STYLES))
    twist = _twist(made, pace, rng, twists)
    slips = [i for i, request in enumerate(made.requests) if request.slip]
    slip = rng.choice(slips) if twist == "corrected" else None
    unsure = rng.choice(made.unnamed) if twist == "does_not_know" else None
    entity = table.removesuffix("s")
    lines, more = list[str](), iter(rng.sample(MORE[style], len(MORE[style])))
    for index, request in enumerate(made.requests):
        first, last = rng.choice(OPENINGS[style]) if index == 0 else next(more), "."
        if index in made.pinned:
            several = sum(other.entity == request.entity for other in made.requests[:index]) > 1
            change, done = ("changes", "are") if several else ("change", "is")
            last = rng.choice(LATER).format(change=change, done=done, entity=entity)
        lines.append(f"{first} {_clause(request, wrong=index == slip)}{last}")
        if index == slip and request.slip:
            lines.append(request.slip.correction)
        if index == unsure:
            lines.append(rng.choice(NOT_KNOWN).format(entity=entity))
    lines.insert(2 if slip == 0 else 1, made.identity.say)  # a correction follows its mistake at once
    if twist == "changes_mind" and made.withdrawn:
        lines += [f"{next(more)} {made.withdrawn.request.say}.", rng.choice(TAKEN_BACK)]
    question = [rng.choice(ASK).format(question=made.question.say)] if made.question else []
    of_twist = {"corrected": CORRECT, "changes_mind": CHANGES_MIND, "does_not_know": DOES_NOT_KNOW.format(entity=entity)}
    told = [PACES[pace], STYLES[style].format(table=table), *([of_twist[twist]] if twist in of_twist else []), CONFIRM, OWN, STOP]
    return Text(
        reason=lines[0],
        known=(*lines[1:], *question),
        unknown=made.withdrawn.unknown if twist == "changes_mind" and made.withdrawn else made.unknown,
        instructions=" ".join(told),
        behaviour={"pace": pace, "style": style, "twist": twist, "identity": made.identity.kind},
    )


def _twist(made: Composed, pace: str, rng: random.Random, twists: Sequence[str]) -> str:
    """One of the twists that this user can have; nobody corrects themselves who says everything in one breath."""
    can = {
        "corrected": pace == "bit_by_bit" and any(request.slip for request in made.requests),
        "changes_mind": pace != "all_at_once" and made.withdrawn is not None,
        "does_not_know": pace != "all_at_once" and bool(made.unnamed),
    }
    possible = [twist for twist in TWISTS if twist in twists and can.get(twist, False)]
    return rng.choice(possible) if possible and ("none" not in twists or rng.random() < TWISTED) else "none"


def withdrawn_of(made: Composed, text: Text) -> Withdrawn | None:
    """What the user of this text takes back."""
    return made.withdrawn if text.behaviour["twist"] == "changes_mind" else None


def required_facts(made: Composed, text: Text) -> list[str]:
    """What the user has to say, word for word, beside a question."""
    withdrawn = withdrawn_of(made, text)
    requests = [*made.requests, *([withdrawn.request] if withdrawn else [])]
    return [*made.identity.facts, *(fact for request in requests for fact in request.facts)]


def missing_facts(made: Composed, text: Text) -> list[str]:
    """The facts that the user needs and the text lacks."""
    asked = [made.question.say] if made.question else []
    return [fact for fact in (*required_facts(made, text), *asked) if fact not in text.spoken]


def leaked_ids(made: Composed, text: Text, ids: frozenset[str]) -> list[str]:
    """The ids among `ids` that the text gives away although no fact of it has them."""
    named = " ".join([*required_facts(made, text), *([made.question.say] if made.question else [])])
    return sorted(id for id in ids if id in text.spoken and id not in named)


def _clause(request: Request, *, wrong: bool) -> str:
    return request.say.replace(request.slip.right, request.slip.wrong) if wrong and request.slip else request.say


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
    """Ask for a line at a time until there are no more; look the user up as soon as they said who they are."""
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
            yield {"say": f"{heard} {rng.choice(ASK_NUMBER).format(entity=entity)}"}
        else:
            yield {"say": rng.choice(FOUND).format(name=name) if number == known else rng.choice(ANYTHING_ELSE)}


def _act(
    made: Composed, calls: Sequence[tuple[str, CallTool]], domain: Affordances, rng: random.Random
) -> Iterator[dict[str, str]]:
    for id, call in calls:
        if call in made.writes:
            what = rng.choice(ASK_TO_CONFIRM).format(what=domain.in_words(made.user_id, call))
            yield {"say": f"{domain.manners.cautions.get(call.name, '')}{what}"}
        yield {"action": id}


def _last_words(made: Composed, book: RuleBook, rng: random.Random) -> str:
    refused = [f"I am sorry, but {book.refusal(r.breaks).format(entity=r.entity)}." for r in made.requests if r.breaks]
    done = [rng.choice(DONE)] if made.writes else []
    answer = [f"The amount that you asked for is ${made.question.value}."] if made.question else []
    return " ".join([*refused, *done, *answer, "Is there anything else?"])
