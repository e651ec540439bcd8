"""Composed tasks: requests of one customer that leave each other alone, drawn to a cell of the grid of writes x burden."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tau2rl.synth.request import Question, Read, Request, burden, read
from tau2rl.synth.retail import Retail
from tau2rl.synth.rules import RuleBook
from tau2rl.types import CallTool

BURDENS = {"0-2": (0, 2), "3-5": (3, 5), "6-9": (6, 9), "10+": (10, 10**9)}  # name -> least and most reads
REFUSAL = (0, "0-2")  # the cell of tasks in which the agent must refuse and answer a question
ASKS = 0.35  # share of tasks with writes in which the customer also asks something
DRAWS = 30  # of requests for one composition


@dataclass(frozen=True, slots=True, kw_only=True)
class Composed:
    """What one conversation is about: `Composed(user_id="mei_li_1", requests=(...,), question=None, auth=..., pinned=...)`."""

    user_id: str
    identity: str  # how the customer says who they are
    identity_facts: tuple[str, ...]
    auth: Read  # the read that authenticates them
    by_email: bool
    requests: tuple[Request, ...]  # in the order in which they are carried out
    question: Question | None
    pinned: tuple[int, ...] = ()  # requests that must come after an earlier one on the same entity

    @property
    def writes(self) -> tuple[CallTool, ...]:
        """The calls that change the database; none where a rule forbids them."""
        return tuple(request.call for request in self.requests if not request.breaks)

    @property
    def reads(self) -> list[Read]:
        """The least reads after which all arguments and the answer are known; authentication is not counted."""
        asked = [self.question.reads] if self.question else []
        return burden([*(r.reads for r in self.requests if not r.breaks), *asked])

    @property
    def looked_up(self) -> list[Read]:
        """What an agent reads that keeps to the policy: who it is, `reads`, and every order before it is changed or refused."""
        orders = [read("get_order_details", order_id=r.entity) for r in self.requests if r.entity != self.user_id]
        return [self.auth, *burden([self.reads, orders])]

    @property
    def cell(self) -> tuple[int, str]:
        """(number of writes, bin of the burden)."""
        return len(self.writes), burden_bin(len(self.reads))


def burden_bin(reads: int) -> str:
    """The bin of a number of reads.

    >>> burden_bin(0), burden_bin(5), burden_bin(12)
    ('0-2', '3-5', '10+')
    """
    return next(name for name, (low, high) in BURDENS.items() if low <= reads <= high)


class Composer:
    """Draws composed tasks of retail."""

    def __init__(self, retail: Retail, book: RuleBook) -> None:
        self._retail, self._book = retail, book

    def compose(self, user_id: str, cell: tuple[int, str], rng: random.Random) -> Composed | None:
        """A task of this customer in this cell, or None where the draw came to nothing."""
        writes = cell[0]
        requests = self._requests(user_id, cell, rng) if writes else self._refusal(user_id, rng)
        if requests is None:
            return None
        asked = [r.question for r in requests if r.question and self._retail.is_clear(user_id, r.question.value)]
        question = rng.choice(asked) if asked and (not writes or rng.random() < ASKS) else None
        if not writes and question is None:
            return None  # else doing nothing would solve it
        by_email = rng.random() < 0.5
        identity, facts, auth = self._retail.identity(user_id, by_email)
        ordered, pinned = self._ordered(requests, rng)
        made = Composed(
            user_id=user_id,
            identity=identity,
            identity_facts=facts,
            auth=auth,
            by_email=by_email,
            requests=ordered,
            question=question,
            pinned=pinned,
        )
        return made if made.cell == cell else None

    def _refusal(self, user_id: str, rng: random.Random) -> list[Request] | None:
        made = self._retail.draw_refusal(user_id, rng)
        broken = self._book.broken(self._retail.rows, user_id, made.call) if made else []
        return [replace(made, breaks=broken[0].id)] if made and len(broken) == 1 else None

    def _requests(self, user_id: str, cell: tuple[int, str], rng: random.Random) -> list[Request] | None:
        """Legal requests that leave each other alone; one that would lead out of the cell is drawn again."""
        writes, (least, most) = cell[0], BURDENS[cell[1]]
        found: list[Request] = []
        for _ in range(DRAWS):
            made = self._retail.draw(user_id, rng)
            if made is None or self._book.broken(self._retail.rows, user_id, made.call):
                continue
            reads = len(burden([*(other.reads for other in found), made.reads]))
            if reads > most or (len(found) == writes - 1 and reads < least):
                continue
            if all(_apart(made, other) for other in found) and self._some_order(found, made):
                found.append(made)
            if len(found) == writes:
                return found
        return None

    def _some_order(self, found: Sequence[Request], made: Request) -> bool:
        """Whether the new request can come before or after those on the same entity."""
        calls = [r.call for r in found if r.entity == made.entity]
        first, last = [made.call, *calls], [*calls, made.call]
        return not self._book.broken_together(first) or not self._book.broken_together(last)

    def _ordered(self, requests: Sequence[Request], rng: random.Random) -> tuple[tuple[Request, ...], tuple[int, ...]]:
        """The requests in an order that breaks no rule, and the places of those that may not come earlier."""
        mixed = list(requests)
        rng.shuffle(mixed)
        late = [r for r in mixed if any(o is not r and self._book.broken_together([r.call, o.call]) for o in mixed)]
        ordered = [r for r in mixed if all(r is not other for other in late)] + late
        return tuple(ordered), tuple(range(len(ordered) - len(late), len(ordered)))


def _apart(left: Request, right: Request) -> bool:
    """Neither writes what the other's selectors look at, no order is cancelled that is changed too, no call comes twice."""
    if left.entity in right.depends or right.entity in left.depends:
        return False
    if left.entity != right.entity:
        return True
    return left.call.name != right.call.name and "cancel_pending_order" not in (left.call.name, right.call.name)
