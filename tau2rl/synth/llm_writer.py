"""A model that puts a made task into a user's words, line by line, and is believed only after a round trip of the facts.

The templates' lines go in, each with the words that must stay; as many lines come back. They are checked twice: the words that
must stay do, each in its own line, and nothing that looks like a fact is added; then the model, shown the new lines alone, says
what each asks for and which facts it has, which must be the ones that were put in. What fails is asked for again with its faults.
Answers are kept by a hash of the question, so the same command gives the same bytes and pays once.
"""

from __future__ import annotations

import json
import re
from abc import abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from tau2rl import settings
from tau2rl.config import SynthConfig, UserConfig, WriterConfig
from tau2rl.env.asked_model import AskedModel
from tau2rl.errors import UserError
from tau2rl.synth.compose import Composed
from tau2rl.synth.failure_clusters import Failures
from tau2rl.synth.generator import D, Json, Made, TaskGenerator, Wording
from tau2rl.synth.texts import NOT_KNOWN, STYLES, TAKEN_BACK, Text, required_facts, withdrawn_of

REWRITE = (
    "You write what a user types to a service agent. You get lines that a program made, and the manner in which this user "
    "talks. Say each line anew, as this user would. Keep the order and the number of the lines: each becomes one line, "
    "without a line break. The strings in `keep` must stand in their line exactly as they are, letter for letter. Add no fact, "
    'no name, no number, no reason and no wish, and leave none out. Answer with JSON alone: {"lines": ["...", ...]}'
)
READ = (
    "You read what a user types to a service agent, line by line. Say of each line which of `kinds` it is, and list "
    "its facts: every stretch of words that says who, which, what, how many, how much, where to, when, why or how, copied from "
    'the line as it stands. Answer with JSON alone: {"lines": [{"kind": "...", "facts": ["...", ...]}, ...]}'
)
IDENTIFY, CORRECT, ASK = "says_who_they_are", "corrects_a_mistake", "asks_for_information"
TAKE_BACK, NOT_KNOW = "takes_the_last_wish_back", "does_not_know_a_number"
FILLERS = frozenset(
    (
        *("a", "an", "the", "my", "your", "me", "i", "to", "for", "of", "in", "on", "at", "and", "or", "with", "it", "is", "be"),
        *("by", "from", "this", "that", "please"),
    )
)
# What a request says beside its facts and its purpose: left out, it would ask for something else.
QUALIFIERS = ("one way", "a single item", "out of everything", "outbound trip", "return trip", "everything else the same")
FIRST_THE_OTHER = re.compile(r"(?:only after|when) the other changes? to the same \w+(?: (?:is|are) done)?")
FACT_LIKE = re.compile(r"[\d#@$%]")
SHARED = "it shares something with the test tasks"
LOST_IN_A_ROW = 10  # texts that the model cannot write, before the command ends
NAME = re.compile(r"(?<![.!?:\n] )(?<!^)\b[A-Z][a-z]+")  # a capital that begins no sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterLine:
    """A line of the templates: `WriterLine(say="Cancel order #W1.", kind="cancel_pending_order", keep=("order #W1",))`."""

    say: str
    kind: str
    keep: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class WriterUsage:
    """What the writer has asked for, for the card."""

    calls: int = 0
    from_cache: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    texts: int = 0
    rewritten: int = 0  # texts that were asked for again
    faults: dict[str, int] = field(default_factory=dict[str, int])

    def add(self, other: WriterUsage) -> None:
        """Count another one's too."""
        for name in ("calls", "from_cache", "prompt_tokens", "completion_tokens", "cost_usd", "texts", "rewritten"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        counts = {kind: self.faults.get(kind, 0) + other.faults.get(kind, 0) for kind in {*self.faults, *other.faults}}
        self.faults = dict(sorted(counts.items()))


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenText:
    """What came of a text: `WrittenText(text=Text(...), faults=(), spent=...)`; no text: no try kept the facts."""

    text: Text | None
    faults: tuple[str, ...]  # of the last try
    spent: WriterUsage


class LlmWriter:
    """Puts texts into other words; safe from several threads."""

    def __init__(self, config: WriterConfig, *, cache: Path, kinds: Sequence[str]) -> None:
        """`kinds`: the tools that a user may ask for. Raises UserError for a key that is not set."""
        self._attempts = config.attempts
        self._kinds = [*sorted(kinds), IDENTIFY, CORRECT, TAKE_BACK, NOT_KNOW, ASK]
        self.model, self.concurrency = config.model, config.concurrency
        shared = config.model_dump(include={"model", "api_base", "api_key_env", "temperature", "timeout_seconds", "retries"})
        self._model = AskedModel(UserConfig(kind="llm", omit=("seed",), **shared), cache=cache, who="writer")

    def rewrite(self, text: Text, lines: Sequence[WriterLine], *, manner: str) -> WrittenText:
        """The text in other words; `lines`: of what it has. Raises UserError where the model does not answer."""
        asked = {"manner": manner, "lines": [{"say": line.say, "keep": list(line.keep)} for line in lines]}
        messages = [{"role": "system", "content": REWRITE}, {"role": "user", "content": json.dumps(asked, ensure_ascii=False)}]
        spent, faults = WriterUsage(texts=1), list[str]()
        for attempt in range(self._attempts):
            answer = self._ask(messages, spent)
            said = _strings(_json(answer).get("lines"))
            faults = line_faults(lines, said) or self._read_back(lines, said, spent)
            if not faults:
                return WrittenText(text=replace(text, reason=said[0], known=tuple(said[1:])), faults=(), spent=spent)
            for fault in faults:
                kind = fault.partition(":")[0]
                spent.faults[kind] = spent.faults.get(kind, 0) + 1
            spent.rewritten += attempt == 0
            wrong = "This is wrong:\n" + "\n".join(faults) + "\nWrite all lines again."
            messages = [*messages, {"role": "assistant", "content": answer}, {"role": "user", "content": wrong}]
        return WrittenText(text=None, faults=tuple(faults), spent=spent)

    def _read_back(self, lines: Sequence[WriterLine], said: Sequence[str], spent: WriterUsage) -> list[str]:
        """The faults of a round trip: what was read from the new lines is not what was put into them."""
        asked = json.dumps({"kinds": self._kinds, "lines": list(said)}, ensure_ascii=False)
        read = _json(self._ask([{"role": "system", "content": READ}, {"role": "user", "content": asked}], spent)).get("lines")
        found = cast("list[Any]", read) if isinstance(read, list) else []
        if len(found) != len(lines):
            return [f"read back: {len(found)} lines instead of {len(lines)}"]
        return [fault for number, line in enumerate(lines) for fault in round_trip(number, line, found[number])]

    def _ask(self, messages: Sequence[Mapping[str, str]], spent: WriterUsage) -> str:
        """The model's answer, from the cache where it has been asked that before, counted. Raises UserError."""
        answer = self._model.ask(messages, read=str)
        spent.from_cache += answer.calls == 0
        spent.calls += answer.calls
        spent.prompt_tokens += answer.usage.prompt_tokens
        spent.completion_tokens += answer.usage.completion_tokens
        spent.cost_usd += answer.usage.cost_usd
        return answer.value


def writer_lines(made: Composed, text: Text, *, table: str) -> list[WriterLine]:
    """The lines of a text with what each is for and the words that must stay."""
    entity = table.removesuffix("s")
    kinds = {made.identity.say: IDENTIFY, **dict.fromkeys(TAKEN_BACK, TAKE_BACK)}
    kinds |= {words.format(entity=entity): NOT_KNOW for words in NOT_KNOWN}
    facts = required_facts(made, text)
    for request in made.requests:
        if request.slip:
            facts += [request.slip.wrong, request.slip.right]
            kinds[request.slip.correction] = CORRECT
    if made.question:
        facts.append(made.question.say)
    facts += [*QUALIFIERS, f"the number of that {entity}", "that last one"]
    return [
        WriterLine(
            say=line, kind=kinds.get(line) or _kind(made, text, line), keep=(*FIRST_THE_OTHER.findall(line), *within(line, facts))
        )
        for line in (text.reason, *text.known)
    ]


def _kind(made: Composed, text: Text, line: str) -> str:
    """The tool that a line asks for, by its clause; a question asks for none."""
    withdrawn = withdrawn_of(made, text)
    for request in (*made.requests, *([withdrawn.request] if withdrawn else [])):
        wrong = request.say.replace(request.slip.right, request.slip.wrong) if request.slip else request.say
        if request.say in line or wrong in line:
            return request.call.name
    return ASK


def within(line: str, facts: Sequence[str]) -> tuple[str, ...]:
    """The facts that stand in a line, without those that are part of a longer one.

    >>> within("cancel order #W1 because I ordered it twice", ["order #W1", "#W1", "blue"])
    ('order #W1',)
    """
    found = [fact for fact in dict.fromkeys(facts) if fact and fact in line]
    return tuple(fact for fact in found if not any(fact in other for other in found if other != fact))


def line_faults(lines: Sequence[WriterLine], said: Sequence[str]) -> list[str]:
    """What is wrong with new lines without asking anybody; each fault begins with its kind.

    >>> line_faults([WriterLine(say="Cancel order #W1.", kind="", keep=("order #W1",))], ["Please drop #W1, I am Ann."])
    ['missing: line 1 must have `order #W1`', 'added: line 1 has `#`', 'added: line 1 has `Ann`']
    """
    if len(said) != len(lines):
        return [f"lines: {len(said)} instead of {len(lines)}"]
    faults: list[str] = []
    for number, (line, new) in enumerate(zip(lines, said, strict=True), start=1):
        if not new.strip() or "\n" in new:
            faults.append(f"lines: line {number} is empty, or more than one")
        faults += [f"missing: line {number} must have `{fact}`" for fact in line.keep if fact not in new]
        others = {fact for other in lines if other is not line for fact in other.keep} - set(line.keep)
        leaked = [fact for fact in sorted(others) if fact in new and fact not in line.say]
        faults += [f"leaked: line {number} has `{fact}` of another line" for fact in leaked]
        rest = new
        for fact in sorted(line.keep, key=len, reverse=True):
            rest = rest.replace(fact, " ")
        known = set(re.findall(r"\w+", line.say))
        added = [*FACT_LIKE.findall(rest)[:1], *(name for name in NAME.findall(rest) if name not in known)]
        faults += [f"added: line {number} has `{one}`" for one in dict.fromkeys(added)]
    return faults


def round_trip(number: int, line: WriterLine, read: Any) -> list[str]:
    """What was read from a new line and is not what was put in: another purpose, a fact lost, a fact that nobody gave.

    >>> line = WriterLine(say="Cancel order #W1.", kind="cancel", keep=("order #W1",))
    >>> round_trip(0, line, {"kind": "cancel", "facts": ["#W1 today"]})
    ['lost: line 1: order', 'invented: line 1: today']
    """
    got = cast("Mapping[str, Any]", read) if isinstance(read, dict) else {}
    facts = words(" ".join(_strings(got.get("facts"))))
    kind = got.get("kind")
    faults = [] if kind == line.kind else [f"purpose: line {number + 1} reads as `{kind}`, not `{line.kind}`"]
    if lost := sorted(words(" ".join(line.keep)) - facts):
        faults.append(f"lost: line {number + 1}: {', '.join(lost)}")
    if invented := sorted(facts - words(line.say)):
        faults.append(f"invented: line {number + 1}: {', '.join(invented)}")
    return faults


def words(text: str) -> set[str]:
    """The words of a text that say something.

    >>> sorted(words("cancel my order #W12, please"))
    ['cancel', 'order', 'w12']
    """
    return set(re.findall(r"[a-z0-9]+", text.lower())) - FILLERS


def _json(answer: str) -> dict[str, Any]:
    """The object in an answer, which may stand in a fence; empty where there is none."""
    begin, end = answer.find("{"), answer.rfind("}")
    try:
        found: Any = json.loads(answer[begin : end + 1])
    except ValueError:
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _strings(value: Any) -> list[str]:
    return [one for one in cast("list[Any]", value) if isinstance(one, str)] if isinstance(value, list) else []


@dataclass(frozen=True, slots=True, kw_only=True)
class InWords(Made):
    """A proved task with what a model needs to tell it anew."""

    text: Text
    lines: tuple[WriterLine, ...]  # none where no model writes
    told_anew: bool = False  # with the calls of the task before it, by another user


class ModelWording(Wording):
    """Puts tasks, each an `InWords`, into the words of a model."""

    def __init__(
        self, writer: LlmWriter, *, domain: str, table: str, overlaps: Callable[[Made], object], rejected: Counter[str]
    ) -> None:
        """`overlaps`: whether a task shares something with the test tasks; `rejected` counts what is thrown away."""
        super().__init__()
        self._writer, self._domain, self._table, self._overlaps, self._rejected = writer, domain, table, overlaps, rejected
        self._pool = ThreadPoolExecutor(writer.concurrency)
        self._waiting: deque[list[tuple[InWords, Future[WrittenText]]]] = deque()
        self._lost = 0  # texts in a row
        self.spent = WriterUsage()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Ask for no further text."""
        self._pool.shutdown(cancel_futures=True)

    def add(self, same: Sequence[Made]) -> None:
        """Tell these ways of one task anew. Raises UserError where the model does not answer, or never keeps the facts."""
        manner = {style: words.format(table=self._table) for style, words in STYLES.items()}
        tell, ways = self._writer.rewrite, [made for made in same if isinstance(made, InWords)]
        self._waiting.append(
            [(m, self._pool.submit(tell, m.text, m.lines, manner=manner[m.text.behaviour["style"]])) for m in ways]
        )
        while self._waiting and all(written.done() for _, written in self._waiting[0]):  # so that what is wrong shows early
            self._take()

    def settle(self) -> list[list[Made]]:
        """What was added since the last call, in its order, without the texts that no try could write. Raises UserError."""
        while self._waiting:
            self._take()
        return super().settle()

    def _take(self) -> None:
        told = [self._in_words(made, written.result()) for made, written in self._waiting.popleft()]
        self._told.append([made for made in told if made is not None])

    def _in_words(self, made: InWords, written: WrittenText) -> Made | None:
        self.spent.add(written.spent)
        if written.text is None:
            self._rejected["the writer changed a fact"] += 1
            self._lost += 1
            if self._lost == LOST_IN_A_ROW:
                raise UserError(
                    f"the writer `{self._writer.model}` changed facts in {LOST_IN_A_ROW} texts in a row; of the last: "
                    + "; ".join(written.faults),
                    hint="another model, more `writer.attempts`, or a lower `writer.temperature`",
                )
            return None
        self._lost = 0
        told = replace(made, text=written.text, task={**made.task, "user_scenario": written.text.scenario(self._domain)})
        if self._overlaps(told):
            self._rejected[SHARED] += 1
            return None
        return told


class WrittenTasks(TaskGenerator[D]):
    """A generator whose texts a model can say anew."""

    def __init__(self, config: SynthConfig, failures: Failures | None, *, table: str, kinds: Sequence[str]) -> None:
        """`table`: what users have, "orders"; `kinds`: what a line can be about; `failures`: what the tasks are made for.

        Raises UserError for a key that is not set.
        """
        self._config, self.failures, self._table = config, failures, table
        self._writer: LlmWriter | None = None
        self._wording: ModelWording | None = None
        if config.writer.kind == "llm":
            cache = config.writer.cache or settings.output_root() / "synth" / "writer-cache"
            self._writer = LlmWriter(config.writer, cache=cache.expanduser(), kinds=kinds)

    @property
    def spent(self) -> Json | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What the model took that wrote the texts, where there was one."""
        return asdict(self._wording.spent) if self._wording else None

    @abstractmethod
    def overlaps(self, made: Made) -> object:
        """Whether a task shares something with the test tasks."""

    def wording(self, rejected: Counter[str]) -> Wording:
        """A model's, where one writes the texts."""
        if self._writer is None:
            return super().wording(rejected)
        self._wording = ModelWording(
            self._writer, domain=self._config.domain, table=self._table, overlaps=self.overlaps, rejected=rejected
        )
        return self._wording
