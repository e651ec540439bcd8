"""Proved tasks in the words of a model, several at once and in the order in which they were given.

What comes out depends on the answers alone, never on which of them came first.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType

from tau2rl.errors import UserError
from tau2rl.synth.card import Made
from tau2rl.synth.llm_writer import LlmWriter, Spent, Written

GIVE_UP = 10  # texts in a row that the model cannot write


class Wording:
    """Puts tasks into the writer's words; without a writer they stay as they are.

    with Wording(writer, table="orders", overlaps=guard.overlaps, rejected=rejected) as wording:
        wording.add([made])
        told = wording.settle()  # [[made in its words], ...]
    """

    def __init__(
        self, writer: LlmWriter | None, *, domain: str, table: str, overlaps: Callable[[Made], object], rejected: Counter[str]
    ) -> None:
        """`overlaps`: whether a task shares something with the test tasks; `rejected` counts what is thrown away."""
        self._writer, self._domain, self._table, self._overlaps, self._rejected = writer, domain, table, overlaps, rejected
        self._pool = ThreadPoolExecutor(writer.concurrency) if writer else None
        self._waiting: deque[list[tuple[Made, Future[Written]]]] = deque()
        self._told: list[list[Made]] = []
        self._lost = 0  # texts in a row
        self.spent = Spent() if writer else None

    def __enter__(self) -> Wording:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def add(self, same: Sequence[Made]) -> None:
        """Tell these ways of one task anew. Raises UserError where the model does not answer, or never keeps the facts."""
        writer, pool = self._writer, self._pool
        if writer is None or pool is None:
            self._told.append(list(same))
            return
        self._waiting.append([(m, pool.submit(writer.rewrite, m.composed, m.text, table=self._table)) for m in same])
        while self._waiting and all(written.done() for _, written in self._waiting[0]):  # so that what is wrong shows early
            self._take()

    def settle(self) -> list[list[Made]]:
        """What was added since the last call, in its order, without the texts that no try could write. Raises UserError."""
        while self._waiting:
            self._take()
        told, self._told = self._told, []
        return told

    def _take(self) -> None:
        told = [self._in_words(made, written.result()) for made, written in self._waiting.popleft()]
        self._told.append([made for made in told if made is not None])

    def _in_words(self, made: Made, written: Written) -> Made | None:
        assert self._writer is not None and self.spent is not None
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
            self._rejected["it shares something with the test tasks"] += 1
            return None
        return told
