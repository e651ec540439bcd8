"""`tau2rl synth`: from a database to a folder of proved tasks.

Everything is drawn from the seed, so the same command gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib import resources
from itertools import cycle
from pathlib import Path
from typing import Any

from tau2rl import settings
from tau2rl.config import SynthConfig
from tau2rl.env.task_replay import Replayer
from tau2rl.errors import UserError
from tau2rl.synth.affordances import Affordances
from tau2rl.synth.airline import Airline
from tau2rl.synth.card import FILES, Made, command, write_folder
from tau2rl.synth.compose import REFUSAL, Composed, Composer
from tau2rl.synth.demonstration import demonstrate
from tau2rl.synth.failure_clusters import Cluster, Failures, calls_in_words, turns
from tau2rl.synth.guard import Guard
from tau2rl.synth.llm_writer import LlmWriter, Spent
from tau2rl.synth.proof import Proof, Prover, Rejected
from tau2rl.synth.request import call_of
from tau2rl.synth.retail import Retail
from tau2rl.synth.rules import Rows, RuleBook
from tau2rl.synth.texts import Text, leaked, missing, write
from tau2rl.synth.wording import Wording

DOMAINS: Mapping[str, Callable[[Rows], Affordances]] = {"airline": Airline, "retail": Retail}
SHARES = {"test": 0.2, "train-select": 0.1}  # of the customers; the others are `train-learn`
TRIES = 400  # compositions for one task
TELLINGS = 20  # texts for one further way of a task
GIVE_UP = 5  # tasks in a row that a cell could not give: its share goes to the others
JOURNAL = "progress.jsonl"
Cell = tuple[int, str]
Turn = tuple[Cell, Cluster | None]  # where the next task stands, and what it is made for
Entry = dict[str, Any]  # {"number", "cell", "again", "found": the try that gave the task or None, "rejected", "proof"}


class Maker:
    """Makes the tasks that a config asks for."""

    def __init__(self, config: SynthConfig, replayer: Replayer, failures: Failures | None = None) -> None:
        self.config, self.replayer, self.failures = config, replayer, failures
        self.rejected: Counter[str] = Counter()
        self._domain = DOMAINS[config.domain](self.replayer.rows())
        self._book = RuleBook(config.domain, self.replayer.policy, self._domain.checks, self._domain.task_checks)
        self._composer = Composer(self._domain, self._book)
        self._prover = Prover(self.replayer, self._domain, self._book)
        self.guard = Guard(domain=self._domain, tests=self.replayer.test_tasks(), writes=self.replayer.writes)
        self._users = [id for id in self._domain.users() if id not in self.guard.users]
        self._wording = Wording(
            _writer(config, self.replayer.writes),
            domain=config.domain,
            table=self._domain.table,
            overlaps=lambda made: self.guard.overlap(made.task),
            rejected=self.rejected,
        )
        self._used: Counter[str] = Counter()
        self._seen: set[tuple[str, str]] = set(failures.tasks if failures else ())

    @property
    def spent(self) -> Spent | None:
        """What a model was asked for, where one writes the texts."""
        return self._wording.spent

    def make(self, earlier: list[Entry], keep: Callable[[Entry], object], on_task: Callable[[int, int], object]) -> list[Made]:
        """The tasks with their ways, in the order of their numbers; fewer than asked for where every cell has given up.

        `earlier`: what an interrupted run of the same command kept, which is not proved again.
        """
        told: list[list[Made]] = []  # a task in its ways
        empty: Counter[Any] = Counter()  # turns in a row that came to nothing, by turn
        kept, plan = iter(earlier), self._plan()
        coming, most, number = cycle(plan), int(self.config.refusals * self.config.num_tasks), 0
        with self._wording as wording:
            while True:
                made = [ways[0] for ways in told]
                for turn in coming:
                    refused = sum(m.composed.cell == REFUSAL for m in made)
                    over = {t for t in plan if empty[t] >= GIVE_UP or (t[0] == REFUSAL and refused >= most)}
                    if len(made) == self.config.num_tasks or over.issuperset(plan):
                        break
                    if turn in over:
                        continue
                    entry = next(kept, None)
                    found = self._again(entry, turn) if entry else self._one(number, turn, empty[turn], keep)
                    empty[turn] = 0 if found else empty[turn] + 1
                    if not found:
                        continue
                    number += 1
                    self._used[found[0].composed.user_id] += 1
                    self._seen.add(_same(found[0].composed))
                    made.append(found[0])
                    wording.add(found)
                    on_task(len(made), self.config.num_tasks)
                settled = wording.settle()
                told += [ways for ways in settled if ways]
                if not settled or all(settled):  # else others are made in the place of those that have no words
                    return [m for ways in told for m in ways]

    def _plan(self) -> list[Turn]:
        """The cells in turn, the refusals spread between them in their share; or the clusters of failures in theirs."""
        if self.failures is not None:
            return [(cell, cluster) for cell, cluster in turns(self.failures.clusters)]
        grid: list[Turn] = [((writes, burden), None) for writes in self.config.writes for burden in self.config.burdens]
        share = self.config.refusals
        if share == 0:
            return grid
        rounds = max(1, round(share * len(grid) / (1 - share) * 20))  # in 20 turns of the grid
        cells = grid * 20
        step = len(cells) / rounds
        for index in reversed(range(rounds)):
            cells.insert(int(index * step), (REFUSAL, None))
        return cells

    def _one(self, number: int, turn: Turn, again: int, keep: Callable[[Entry], object]) -> list[Made]:
        """A task in its ways; nothing where the cell could not give one."""
        entry: Entry = {"number": number, "cell": _named(turn), "again": again, "found": None, "proof": None}
        before, found = Counter(self.rejected), list[Made]()
        for place in range(TRIES):
            drawn = self._draw(entry, place, turn)
            if drawn is None:
                continue
            try:
                proof = self._proved(*drawn)
            except Rejected as reason:
                self.rejected[str(reason)] += 1
                continue
            found = self._ways(*drawn, proof, turn)
            entry |= {"found": place, "proof": asdict(proof)}
            break
        keep({**entry, "rejected": self.rejected - before})
        return found

    def _again(self, entry: Entry, turn: Turn) -> list[Made]:
        """The task of an entry, composed again with the same draws."""
        if entry["cell"] != _named(turn):
            raise UserError(
                "the progress in the folder is that of another command", hint="remove the folder, or name another one"
            )
        self.rejected.update(entry["rejected"])
        if entry["found"] is None:
            return []
        drawn = self._draw(entry, entry["found"], turn)
        assert drawn is not None  # it was found with these draws
        return self._ways(*drawn, Proof(**entry["proof"]), turn)

    def _ways(self, made: Composed, first: Text, task: dict[str, Any], proof: Proof, turn: Turn) -> list[Made]:
        """The task as its first text has it, and in further ways, where it is asked for them and can be told so."""

        def way(text: Text, task: dict[str, Any]) -> Made:
            split = split_of(made.user_id)
            anew = text is not first
            return Made(composed=made, text=text, task=task, proof=proof, split=split, cluster=turn[1], told_anew=anew)

        ways, known = [way(first, task)], [first.behaviour]
        for place in range(TELLINGS * (self.config.behaviours - 1)):
            if len(ways) == self.config.behaviours:
                break
            rng = random.Random(f"{task['id']}/{place}")
            other = write(made, self._domain.table, rng, self.config.twists)
            if other.behaviour in known or self._faults(made, other):
                continue
            again = self._as_task(f"{task['id']}-{len(ways)}", made, other, rng)
            if not self.guard.overlap(again):
                ways.append(way(other, again))
                known.append(other.behaviour)
        return ways

    def _draw(self, entry: Entry, place: int, turn: Turn) -> tuple[Composed, Text, dict[str, Any]] | None:
        """A composition in its words, as a task; None where the draw came to nothing."""
        number, again, (cell, cluster) = entry["number"], entry["again"], turn
        rng = random.Random(f"{self.config.seed}/{number}/{entry['cell']}/{again}/{place}")
        user = rng.choice(self._users)
        if self._used[user] >= self.config.per_user or self._domain.room(user) < cell[0]:
            return None
        made = self._composer.compose(user, cell, rng, *([cluster.focus] if cluster else []))
        if made is None:
            return None
        text = write(made, self._domain.table, rng, self.config.twists)
        return made, text, self._as_task(f"synth-{self.config.domain}-{self.config.seed}-{number:05}", made, text, rng)

    def _proved(self, made: Composed, text: Text, task: dict[str, Any]) -> Proof:
        """Its proof. Raises Rejected."""
        if _same(made) in self._seen:
            raise Rejected("the same calls of the same customer as an earlier task")
        if fault := self._faults(made, text):
            raise Rejected(fault)
        if self.guard.overlap(task):
            raise Rejected("it shares something with the test tasks")
        return self._prover.prove(made, task)

    def _faults(self, made: Composed, text: Text) -> str:
        """What is wrong with a text, or ""."""
        if missing(made, text):
            return "a fact is missing from the text"
        ids = frozenset({made.user_id, *self._domain.rows["users"][made.user_id][self._domain.table]})
        return "the text gives away an id" if leaked(made, text, ids) else ""

    def _as_task(self, id: str, made: Composed, text: Text, rng: random.Random) -> dict[str, Any]:
        """tau2's Task as JSON values, with a `demonstration` (`env/task_files.py`)."""
        calls = [*map(call_of, made.looked_up), *made.writes]
        named = [(f"{id}_{i}", call) for i, call in enumerate(calls)]
        writes, burden = made.cell
        broken = [rule for rule in self._book.all() if any(rule.id == request.breaks for request in made.requests)]
        purpose = f"{writes} writes, burden {burden}" if writes else f"must be refused: {broken[0].id}"
        return {
            "id": id,
            "description": {"purpose": purpose, "relevant_policies": broken[0].policy if broken else None, "notes": None},
            "user_scenario": text.scenario(self.config.domain),
            "ticket": None,
            "initial_state": None,
            "evaluation_criteria": {
                "actions": [{"action_id": name, **asdict(call)} for name, call in named],
                "communicate_info": [made.question.value] if made.question else [],
                "nl_assertions": None,
                "reward_basis": ["DB", "COMMUNICATE"],
            },
            "demonstration": demonstrate(made, text, named, domain=self._domain, book=self._book, rng=rng),
        }


def _writer(config: SynthConfig, writes: frozenset[str]) -> LlmWriter | None:
    if config.writer.kind == "templates":
        return None
    cache = config.writer.cache or settings.output_root() / "synth" / "writer-cache"
    return LlmWriter(config.writer, cache=cache.expanduser(), kinds=sorted(writes))


def split_of(user_id: str) -> str:
    """The split of a customer, the same for every seed and size.

    >>> split_of("mei_li_1") in ("train-learn", "train-select", "test")
    True
    """
    place = int.from_bytes(hashlib.sha256(f"synth/{user_id}".encode()).digest()[:8]) / 2**64
    if place < SHARES["test"]:
        return "test"
    return "train-select" if place < SHARES["test"] + SHARES["train-select"] else "train-learn"


def _same(made: Composed) -> tuple[str, str]:
    return made.user_id, calls_in_words([asdict(request.call) for request in made.requests])


def _named(turn: Turn) -> list[Any]:
    """A turn in the journal, and in the seed of its draws."""
    cell, cluster = turn
    return [*cell, *([cluster.key] if cluster else [])]


def synthesise(
    config: SynthConfig,
    folder: Path,
    on_task: Callable[[int, int], object] = lambda done, total: None,
    *,
    failures: Failures | None = None,
) -> dict[str, Any]:
    """Make the tasks and write them to `folder`; the card's numbers, JSON-ready. Raises UserError.

    `failures`: what `config.from_failures` failed at, where that is what the tasks are made for.
    """
    _refuse_taken(folder, resume=config.resume)
    replayer = Replayer(config.domain)
    identity = {**replayer.identity(), "synth": source_hash()}
    if failures is not None:
        identity["failures"] = [run["episodes_sha256"] for run in failures.runs]
    with _journal(folder, {"command": command(config), **identity}) as (earlier, keep):
        maker = Maker(config, replayer, failures)
        made = maker.make(earlier, keep, on_task)
        spent = asdict(maker.spent) if maker.spent else None
        facts = write_folder(
            folder, config, made, rejected=maker.rejected, guard=maker.guard, identity=identity, spent=spent, failures=failures
        )
    (folder / JOURNAL).unlink()
    return facts


def source_hash() -> str:
    """What decides which tasks a seed gives, beside tau2's data: a hash of this package."""
    files = sorted((file for file in resources.files("tau2rl.synth").iterdir() if file.is_file()), key=lambda file: file.name)
    named = (file for file in files if file.name.endswith((".py", ".yaml")))
    return hashlib.sha256(b"".join(file.read_bytes() for file in named)).hexdigest()[:16]


def _refuse_taken(folder: Path, *, resume: bool) -> None:
    """Raise UserError where the folder has anything but the progress of an interrupted run, and that only with `resume`."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"`{folder}` is a file", hint="name a folder with `--output`")
    inside = {file.name for file in folder.iterdir()} if folder.exists() else set[str]()
    if FILES[0] in inside and JOURNAL not in inside:
        raise UserError(f"`{folder}` has made tasks already", hint="name another folder with `--output`")
    if JOURNAL in inside and not resume:
        raise UserError(f"`{folder}` has the progress of an interrupted run", hint="go on with `--resume`, or remove it")
    if strange := inside - {JOURNAL, *FILES}:
        raise UserError(f"`{folder}` has other files, among them `{min(strange)}`", hint="name another folder with `--output`")


@contextmanager
def _journal(folder: Path, head: dict[str, Any]) -> Iterator[tuple[list[Entry], Callable[[Entry], object]]]:
    """What an interrupted run of the same command kept, and what keeps a further entry. Raises UserError."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / JOURNAL
    whole = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")] if path.exists() else []
    known = [json.loads(line) for line in whole]
    if known and known[0] != head:
        other = next(key for key in head if known[0].get(key) != head[key])
        raise UserError(
            f"`{path}` is the progress of another command or version (`{other}` differs)",
            hint=f"it was `{known[0].get('command')}`; remove the folder to begin anew",
        )
    path.write_bytes(b"".join(whole))  # without a line that a kill has torn
    with path.open("a", encoding="utf-8") as file:

        def keep(entry: Entry) -> None:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            file.flush()

        if not known:
            keep(head)
        yield known[1:], keep
