"""Composed tasks: requests of one user that leave each other alone, drawn to a cell of the grid of writes x burden."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from tau2rl.synth.airline import Airline
from tau2rl.synth.failure_clusters import ANYTHING, Focus
from tau2rl.synth.request import Affordances, AskedAmount, Identity, Read, Request, burden, joined
from tau2rl.synth.retail import Retail
from tau2rl.synth.rules import RuleBook, Tables
from tau2rl.types import CallTool

AFFORDANCES: Mapping[str, Callable[[Tables], Affordances]] = {"airline": Airline, "retail": Retail}
BURDENS = {"0-2": (0, 2), "3-5": (3, 5), "6-9": (6, 9), "10+": (10, 10**9)}  # name -> least and most reads
REFUSAL = (0, "0-2")  # the cell of tasks in which the agent must refuse and answer a question
ASKS = 0.35  # share of tasks with writes in which the user also asks something
DRAWS = 30  # of requests for one composition


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdrawn:
    """What a user could ask for and then take back: `Withdrawn(request=Request(...), unknown="You do not know ...")`."""

    request: Request
    unknown: str  # what such a user does not know, as a sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class Composed:
    """What one conversation is about: `Composed(user_id="mei_li_1", requests=(...,), identity=..., ...)`."""

    user_id: str
    identity: Identity
    requests: tuple[Request, ...]  # in the order in which they are carried out
    question: AskedAmount | None
    unknown: str  # what the user does not know, as a sentence
    pinned: tuple[int, ...] = ()  # requests that must come after an earlier one on the same entity
    withdrawn: Withdrawn | None = None  # for a user who changes their mind
    unnamed: tuple[int, ...] = ()  # requests about an order or reservation that the user does not name by its number

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
        """What an agent reads that keeps to the policy: who it is, `reads`, and what shows whether a request is legal."""
        known = self.identity.known
        return [known, *(r for r in burden([self.reads, *(r.looked_at for r in self.requests)]) if r != known)]

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
    """Draws composed tasks of a domain."""

    def __init__(self, domain: Affordances, book: RuleBook) -> None:
        self._domain, self._book = domain, book

    def compose(self, user_id: str, cell: tuple[int, str], rng: random.Random, focus: Focus = ANYTHING) -> Composed | None:
        """A task of this user in this cell that has what `focus` names, or None where the draw came to nothing."""
        writes = cell[0]
        requests = self._requests(user_id, cell, rng, focus) if writes else self._refusal(user_id, rng, focus)
        if requests is None:
            return None
        questions = [r.question for r in requests if r.question]
        alike = Counter(question.say for question in questions)  # words that fit two requests ask for neither
        asked = [q for q in questions if alike[q.say] == 1 and self._domain.is_clear(user_id, q.value)]
        question = rng.choice(asked) if asked and (not writes or focus.asks or rng.random() < ASKS) else None
        if question is None and (not writes or focus.asks):
            return None  # doing nothing would solve it, or nothing has to be said
        identity = self._domain.identity(user_id, rng)
        ordered, pinned = self._ordered(requests, rng)
        aside = random.Random(rng.random())  # so that what may be withdrawn changes no other draw
        made = Composed(
            user_id=user_id,
            identity=identity,
            requests=tuple(replace(r, looked_at=tuple(self._domain.looked_at(r))) for r in ordered),
            question=question,
            unknown=self._unknown(identity, ordered),
            pinned=pinned,
            withdrawn=self._withdrawn(user_id, identity, ordered, aside) if writes else None,
            unnamed=() if pinned else self._unnamed(ordered, question),
        )
        return made if made.cell == cell else None

    def _withdrawn(self, user_id: str, identity: Identity, requests: Sequence[Request], rng: random.Random) -> Withdrawn | None:
        """A legal request of another kind and about something else than all the others."""
        for _ in range(DRAWS):
            made = self._domain.draw(user_id, rng)
            if made is None or self._book.broken(self._domain.rows, user_id, made.call, made.told):
                continue
            others = (made.entity != r.entity and made.call.name != r.call.name and self._domain.fits(made, r) for r in requests)
            if all(others):
                return Withdrawn(request=made, unknown=self._unknown(identity, [*requests, made]))
        return None

    def _unnamed(self, requests: Sequence[Request], question: AskedAmount | None) -> tuple[int, ...]:
        """The requests about something of the user's whose number stands nowhere in their words."""
        owned = self._domain.rows[self._domain.table]
        told = " ".join([*(fact for request in requests for fact in request.facts), question.say if question else ""])
        return tuple(i for i, r in enumerate(requests) if r.entity in owned and r.entity not in told)

    def _unknown(self, identity: Identity, requests: Sequence[Request]) -> str:
        entities, ids = self._domain.unknown(" ".join(fact for request in requests for fact in request.facts))
        unknown = joined([*identity.unknown, *entities, f"any {ids}"], "or")
        return f"You do not know {unknown}. What the agent can look up, let it look up."

    def _refusal(self, user_id: str, rng: random.Random, focus: Focus) -> list[Request] | None:
        made = self._domain.draw_refusal(user_id, rng)
        broken = self._book.broken(self._domain.rows, user_id, made.call, made.told) if made else []
        if made is None or len(broken) != 1 or not broken[0].refusal or focus.rule not in ("", broken[0].id):
            return None
        return [replace(made, breaks=broken[0].id)]

    def _requests(self, user_id: str, cell: tuple[int, str], rng: random.Random, focus: Focus) -> list[Request] | None:
        """Legal requests that leave each other alone; one that would lead out of the cell is drawn again.

        The tool in focus comes first.
        """
        writes, (least, most) = cell[0], BURDENS[cell[1]]
        found: list[Request] = []
        for _ in range(DRAWS):
            made = self._domain.draw(user_id, rng)
            if made is None or (not found and focus.tool not in ("", made.call.name)):
                continue
            if self._book.broken(self._domain.rows, user_id, made.call, made.told):
                continue
            reads = len(burden([*(other.reads for other in found), made.reads]))
            if reads > most or (len(found) == writes - 1 and reads < least):
                continue
            if all(self._apart(made, other) for other in found) and self._some_order(found, made):
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

    def _apart(self, left: Request, right: Request) -> bool:
        """Neither writes what the other's selectors look at, no call comes twice, and the domain allows both on one entity."""
        if left.entity in right.depends or right.entity in left.depends or not self._domain.fits(left, right):
            return False
        return left.entity != right.entity or (left.call.name != right.call.name and self._domain.apart(left, right))
