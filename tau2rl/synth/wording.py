"""Proved tasks in the words of a model, several at once and in the order in which they were given.

What comes out depends on the answers alone, never on which of them came first.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType

from tau2rl.errors import UserError
from tau2rl.synth.compose import Composed
from tau2rl.synth.generator import Made, Wording
from tau2rl.synth.llm_writer import LlmWriter, Spent, Written
from tau2rl.synth.texts import Text

SHARED = "it shares something with the test tasks"
GIVE_UP = 10  # texts in a row that the model cannot write


@dataclass(frozen=True, slots=True, kw_only=True)
class InWords(Made):
    """A proved task with what a model needs to tell it anew."""

    composed: Composed
    text: Text
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
        self._waiting: deque[list[tuple[InWords, Future[Written]]]] = deque()
        self._lost = 0  # texts in a row
        self.spent = Spent()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Ask for no further text."""
        self._pool.shutdown(cancel_futures=True)

    def add(self, same: Sequence[Made]) -> None:
        """Tell these ways of one task anew. Raises UserError where the model does not answer, or never keeps the facts."""
        tell, table = self._writer.rewrite, self._table
        self._waiting.append(
            [(m, self._pool.submit(tell, m.composed, m.text, table=table)) for m in same if isinstance(m, InWords)]
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

    def _in_words(self, made: InWords, written: Written) -> Made | None:
        self.spent.add(written.spent)
        if written.text is None:
            self._rejected["the writer changed a fact"] += 1
            self._lost += 1
            if self._lost == GIVE_UP:
                raise UserError(
                    f"the writer `{self._writer.model}` changed facts in {GIVE_UP} texts in a row; of the last: "
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
