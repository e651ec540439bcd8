"""What a simulated user did against its own rules, by gates that anybody can check: identifiers, words, order, calls.

tau2's guidelines for users: follow the scenario, make nothing up (nor the result of a tool), stay the user, tell a thing when
it is asked for, and end the conversation when it is at its end. The gates read English by the patterns of `user_phrases.py`; a
made-up story without an identifier, a name, a day, a time or a number in it passes them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from dataclasses import dataclass, field

from tau2rl.enums import TRANSFER_TOOL, UserSignal
from tau2rl.verify.rules import LONGEST, REPEATS, consents
from tau2rl.verify.user_phrases import (
    AFRESH,
    AGENTS_WORDS,
    ANY_NUMBER,
    DATE,
    DECLINES,
    DEED,
    DEVICE,
    IDENTIFIER,
    INSTRUCTS,
    LEAVES_OPEN,
    MEASURE,
    MONTHS,
    NAME,
    NO_REPORT,
    NUMBER,
    OFFERS,
    OUT_OF_CHARACTER,
    SENTENCE_END,
    SERVICE,
    SHORT_NUMBER,
    STREET,
    TIME,
    USERS_WORDS,
    WHAT_ELSE,
)

SIGNAL = re.compile("|".join(UserSignal))
MAKES_UP = re.compile(r"\b(?:make|making) up (?:a|an|some)\b", re.IGNORECASE)
SEPARATORS = re.compile(r"[\s().-]")  # which group the digits of a number
PIECE_END = re.compile(r"(?<=[.?!:])\s+|\n")  # of what may be a quotation: "It says: Your SIM card is active."
WORDS = 16  # characters; shorter ones anybody may say again ("No, that is all.")
GREETINGS = frozenset({"hi", "hello", "hey", "dear", "mr", "ms", "mrs"})
ALREADY = "already"  # of what was done before it was asked for
MOST = 1e5  # of an amount; greater ones are identifiers
FEW = range(2, 10)  # passengers, bags, months that an amount may be multiplied with
ALIKE = 0.9  # of the words of two messages, from which they are the same
COMMON = frozenset(
    {"check", "set", "can", "send", "make", "run", "status", "settings", "app", "payment", "request"}
)  # in names of tools


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What one side said, called or got back: `Line(who="user", text="It says 2G.", calls=())`."""

    who: str  # agent, user or tool
    text: str
    calls: tuple[str, ...] = ()  # names of tools


class Known:
    """What was said so far, in lower case; each text is read once, when it is added.

    >>> known = Known("you are mei, born on july 4th, 1976. it costs $120.50, and the lamp $80.")
    >>> known.add("is it 555-123-2002?")
    >>> known.has("1976-07-04"), known.has("(555) 123 2002"), known.has("July 9th"), known.follows("200.50"), known.follows("210")
    (True, True, False, True, False)
    """

    def __init__(self, text: str) -> None:
        self.text = self._bare = ""
        self._years: dict[tuple[int, int], set[int]] = {}  # of each (month, day) that was named; 0: without a year
        self._numbers: set[float] = set()
        self._amounts: set[float] = set()  # of them, those that the user has heard or said
        self.add(text)

    def add(self, text: str, *, heard: bool = True) -> None:
        """Take in a further text, in lower case; `heard`: by the user too, who may reckon with its numbers."""
        self.text += f"\n{text}"
        self._bare += SEPARATORS.sub("", text)
        numbers = {_value(number) for number in ANY_NUMBER.findall(text)}
        self._numbers |= numbers
        self._amounts |= {number for number in numbers if heard and number <= MOST}
        for match in DATE.finditer(text):
            year, days = _date(match)
            for day in days:
                self._years.setdefault(day, set()).add(year)

    def has(self, fact: str) -> bool:
        """Whether it was said; of a number the digits count, however they are grouped, and of a date the day or one beside it."""
        if (date := DATE.fullmatch(fact)) is not None:
            year, days = _date(date)
            near = {(month, day + by) for month, day in days for by in (-1, 0, 1)}
            years = set[int]().union(*(self._years.get(day, ()) for day in near))
            return bool(years) and (year == 0 or not years.isdisjoint((0, year)))
        plain = fact.lower().lstrip("#")
        digits = SEPARATORS.sub("", plain).removeprefix("w")  # the letter of an order, which may be left out
        return plain in self.text or (digits.isdigit() and digits in self._bare)

    def follows(self, number: str) -> bool:
        """Whether a number was said, or comes of those that the user heard: rounded, a few times one, two or three together."""
        value = _value(number)
        if value in self._numbers:
            return True
        step = next((step for step in (100, 10) if value % step == 0), 1)
        if any(abs(value - amount) < step or value / amount in FEW for amount in self._amounts if amount):
            return True
        digits = 0 if value % 1 == 0 else 2
        pairs = {round(a + b, digits) for a in self._amounts for b in (0, *self._amounts)}
        return any(round(value + by, digits) in pairs for a in (0, *self._amounts) for by in (a, -a))


@dataclass(slots=True, kw_only=True)
class UserGates:
    """The gates over one conversation, line by line: `for line in lines: gates.hear(line)`, each a list of (fault, words)."""

    instructions: str  # all that the user was told
    reason: str  # of it, why the user calls, which the first message may say
    domain_policy: str
    unfinished: bool  # something that the references do was not done in the end
    agent_tools: Collection[str] = ()
    user_tools: Collection[str] = ()  # () also where the calls of the user were not kept
    volunteers: bool = False  # the user is told to tell what it knows unasked
    known: Known = field(init=False)
    shown: str = ""  # what the user's tools gave back, in lower case, with single spaces
    users_turn: bool = False  # the latest calls were the user's
    last: str = ""  # the agent's latest words
    asked: bool = False
    opening: bool = True
    transferred: bool = False
    questions: set[str] = field(default_factory=set[str])
    asked_again: bool = False
    said: list[str] = field(default_factory=list[str])
    used: set[str] = field(default_factory=set[str])  # tools that the user has called
    acted: bool = True  # the user has called one since the agent's latest words
    names: tuple[str, ...] = field(init=False)
    free: bool = field(init=False)  # the user was told to make up a story

    def __post_init__(self) -> None:
        self.known = Known(self.instructions.lower())
        self.known.add(self.domain_policy.lower(), heard=False)
        self.names = _names_in(self.instructions)
        self.free = MAKES_UP.search(self.instructions) is not None
        self.asked = self.volunteers

    def hear(self, line: Line) -> list[tuple[str, str]]:
        """The faults of this line."""
        found: list[tuple[str, str]] = []
        if line.who == "user":
            if line.calls:
                self.acted = True
                self.used |= {*line.calls}
            elif not line.text.strip():
                found.append(("empty_turn", ""))
            else:
                found += self._of_words(line.text[:LONGEST].replace("’", "'"))
        elif line.who == "agent":
            self._listen(line)
        elif self.users_turn:
            self.shown += f" {_single_spaced(line.text)}"
        if line.calls:
            self.users_turn = line.who == "user"
        self.known.add(line.text.lower(), heard=line.who != "tool" or self.users_turn)
        return found

    def _listen(self, line: Line) -> None:
        self.transferred |= TRANSFER_TOOL in line.calls or "transfer" in line.text.lower()
        if not line.text.strip():
            return
        self.asked = self.asked or not self.opening  # what an agent says to the first words is a question
        text = line.text[:LONGEST].replace("’", "'").replace("\\n", "\n")  # of an agent that writes JSON
        words = _words(text)
        self.asked_again = words in self.questions and len(words) > WORDS
        self.questions.add(words)
        self.last, self.acted = text, False

    def _of_words(self, text: str) -> list[tuple[str, str]]:
        spoken = SIGNAL.sub("", text).strip()
        found: list[tuple[str, str]] = []
        own = self._own_words(spoken)
        if self._is_the_agent(own):
            found.append(("role_flip", own[:100]))
        if OUT_OF_CHARACTER.search(own):
            found.append(("out_of_character", own[:100]))
        facts = identifiers_in(spoken)
        if not self.free and (
            strange := [*(fact for fact in [*facts, *details_in(spoken)] if not self.known.has(fact)), *self._unheard(spoken)]
        ):
            found.append(("invented_fact", strange[0]))
        before = Known("" if self.asked else f"{self.reason}\n{self.last}".lower())
        if early := [fact for fact in facts if not self.asked and not before.has(fact)]:
            found.append(("told_before_asked", early[0]))
        if self._repeats(spoken):
            found.append(("repetition", spoken[:100]))
        if self._makes_up_a_result(spoken):
            found.append(("invented_result", spoken[:100]))
        if UserSignal.STOP in text and self.unfinished and self._leaves_too_early(spoken):
            found.append(("stopped_too_early", spoken[:100]))
        if UserSignal.TRANSFER in text and not self.transferred:
            found.append(("early_transfer", spoken[:100]))
        self.opening = False
        return found

    def _unheard(self, spoken: str) -> list[str]:
        """Names that the user introduces and numbers that come from nowhere."""
        names = [name for pair in NAME.findall(spoken) for name in pair if name]
        strange = [name for name in names if not all(word in self.known.text for word in name.lower().split())]
        strange += [time[0] for time in TIME.finditer(spoken) if not self._knows_time(*map(int, time.groups()))]
        return strange + [number for number in numbers_in(spoken) if not self.known.follows(number)]

    def _knows_time(self, hour: int, minute: int) -> bool:
        """Whether somebody named it, in 12 or 24 hours; a full or half hour is a manner of speaking."""
        named = {(int(h) % 12, int(m)) for h, m in TIME.findall(self.known.text)}
        return minute in (0, 30) or (hour % 12, minute) in named

    def _own_words(self, spoken: str) -> str:
        """Without the lines of its instructions, which a scripted user reads out, and what its tools showed it."""
        told = self.instructions.lower()
        lines = "\n".join(line for line in spoken.splitlines() if line.strip().lower() not in told)
        for piece in PIECE_END.split(lines) if self.shown else ():
            if len(piece) > WORDS and _single_spaced(piece) in self.shown:
                lines = lines.replace(piece, "")
        return lines

    def _is_the_agent(self, spoken: str) -> bool:
        """Words of an agent, a call of one of its tools, or its own name in the address."""
        if SERVICE.search(spoken) or any("_" in name and name in spoken for name in self.agent_tools):
            return True
        if not USERS_WORDS.search(spoken) and (AGENTS_WORDS.search(spoken) or (self.user_tools and INSTRUCTS.search(spoken))):
            return True
        own = "|".join(self.names)
        if own and re.search(rf"(?<!\bis )(?<!i'm )(?<!\bam )\b(?:mr|ms|mrs)\.? (?:{own})\b", spoken, re.IGNORECASE):
            return True
        addressed = rf"(\w+)(?:,\s*|\s+)(?:mr\.? |ms\.? |mrs\.? )?({own})[,.!?]\s+\w"
        return bool(own) and any(
            found[1].lower() not in self.names and ("," in found[0].partition(found[2])[0] or found[1].lower() in GREETINGS)
            for found in re.finditer(addressed, spoken, re.IGNORECASE)
        )

    def _repeats(self, spoken: str) -> bool:
        """The same words for the third time, but for an answer to the same question, or a yes to another one."""
        words = _words(spoken)
        if len(words) <= WORDS or self.asked_again or (self.used and self.acted) or ("?" in self.last and consents(spoken)):
            return False
        self.said.append(words)
        same = [one for one in self.said if difflib.SequenceMatcher(None, one.split(), words.split()).ratio() >= ALIKE]
        return len(same) == REPEATS

    def _makes_up_a_result(self, spoken: str) -> bool:
        """The agent asked for something at the phone, and the user reports on it without a call that could have shown it."""
        deed = DEED.search(spoken) is not None
        if not self.user_tools or self.acted or self.opening or (NO_REPORT.search(spoken) and not deed):
            return False
        asked = [one for one in SENTENCE_END.split(self.last) if not OFFERS.search(one)]
        if not any(LEAVES_OPEN.search(one) for one in asked):
            return False
        words = {*_words(" ".join(asked).replace("-", "")).split()}  # wi-fi is wifi
        shared = {name: len(({*name.split("_")} - COMMON) & words) for name in self.user_tools}
        most = max(shared.values())
        if not most:
            return deed and ALREADY not in spoken.lower()
        fitting = {
            name for name in self.used & shared.keys() if shared[name] == most and not (deed and name.startswith("check_"))
        }
        return not fitting or AFRESH.search(self.last) is not None

    def _leaves_too_early(self, spoken: str) -> bool:
        """The agent waits for an answer or is about to act, and the user goes without having declined."""
        waiting = LEAVES_OPEN.search(WHAT_ELSE.sub("", self.last)) is not None
        return waiting and (not DECLINES.search(spoken) or consents(spoken))


def identifiers_in(text: str) -> list[str]:
    """Ids, addresses, numbers and full dates: what is told, or made up.

    >>> identifiers_in("I'm mei_kovacs_8020, born on July 4th, 1976, at 10am on 555-123-2002.")
    ['mei_kovacs_8020', '555-123-2002', 'July 4th, 1976']
    """
    dates = [match.group() for match in DATE.finditer(text) if _date(match)[0]]
    rest = DATE.sub(" ", text)
    return [
        *STREET.findall(text),
        *(one.strip("( ") if "@" not in one else one for one in IDENTIFIER.findall(rest) if not MEASURE.fullmatch(one)),
        *_short_numbers(rest),
        *dates,
    ]


def details_in(text: str) -> list[str]:
    """What may be told unasked, but not be made up: days without a year, and what a phone is called."""
    return [*(match.group() for match in DATE.finditer(text) if not _date(match)[0]), *DEVICE.findall(text)]


def numbers_in(text: str) -> list[str]:
    """Amounts and other numbers that are no identifier.

    >>> numbers_in("$1,160 and 12.50 for 3 bags, order W1234567, by 10:30 on May 20th, 2024.")
    ['1,160', '12.50']
    """
    rest = DATE.sub(" ", text)
    for fact in [*IDENTIFIER.findall(rest), *_short_numbers(rest), *STREET.findall(rest)]:
        rest = rest.replace(fact, " ")
    return NUMBER.findall(rest)


def _short_numbers(text: str) -> list[str]:
    return [number for pair in SHORT_NUMBER.findall(text) for number in pair if number]


def _value(number: str) -> float:
    """Of a number with commas: `_value("1,160.5") == 1160.5`."""
    return round(float(number.replace(",", "") or 0), 2)


def _date(match: re.Match[str]) -> tuple[int, set[tuple[int, int]]]:
    """(year or 0, the (month, day) that it may mean: of 04/12/2001 there are two)."""
    y, m, d, a, b, y2, name, day, y3, day2, name2, y4 = match.groups()
    if y:
        return int(y), {(int(m), int(d))}
    if y2:
        return int(y2), {(int(a), int(b)), (int(b), int(a))}
    month = MONTHS.index((name or name2)[:3].lower()) + 1
    return int(y3 or y4 or 0), {(month, int(day or day2))}


def _names_in(instructions: str) -> tuple[str, ...]:
    """First and last name of the user, as patterns."""
    told = re.findall(r"\b(?:[Yy]ou are|[Yy]our? name is|called) (?:[a-z ]+ )?([A-Z][a-z]+) ([A-Z][a-z]+)\b", instructions)
    ids = re.findall(r"\b([a-z]+)_([a-z]+)_\d+\b", instructions)
    return tuple(dict.fromkeys(name.lower() for pair in (*told[:1], *ids[:1]) for name in pair))


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _single_spaced(text: str) -> str:
    return " ".join(text.lower().split())
