"""`tau2rl synth`: from a database to a folder of proved tasks.

Everything is drawn from the seed, so the same command gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import resources
from itertools import cycle
from pathlib import Path
from typing import Any

from tau2rl.config import SynthConfig
from tau2rl.errors import UserError
from tau2rl.synth.card import FILES, command, write_folder
from tau2rl.synth.database_tasks import DatabaseTasks
from tau2rl.synth.failure_clusters import Cell, Failures
from tau2rl.synth.generator import Draft, Made, Rejected, TaskGenerator
from tau2rl.synth.telecom import TelecomTasks

SHARES = {"test": 0.2, "train-select": 0.1}  # of the users (telecom: of the compositions); the others are `train-learn`
TRIES = 400  # compositions for one task
GIVE_UP = 5  # tasks in a row that a cell could not give: its share goes to the others
JOURNAL = "progress.jsonl"
JournalEntry = dict[str, Any]  # {"number", "cell", "again", "found": the try that gave the task or None, "rejected", "proof"}


class TaskMaker:
    """Makes the tasks that a config asks for."""

    def __init__(self, config: SynthConfig, generator: TaskGenerator[Any]) -> None:
        self.rejected: Counter[str] = Counter()
        self._config, self._generator = config, generator
        self._used: Counter[str] = Counter()
        self._seen: set[tuple[str, str]] = set(generator.failures.tasks if generator.failures else ())

    def make(
        self, earlier: list[JournalEntry], keep: Callable[[JournalEntry], object], on_task: Callable[[int, int], object]
    ) -> list[Made]:
        """The tasks with their ways, in the order of their numbers; fewer than asked for where every cell has given up.

        `earlier`: what an interrupted run of the same command kept, which is not proved again.
        """
        told: list[tuple[Cell, list[Made]]] = []  # a task in its ways
        empty: Counter[Cell] = Counter()  # turns in a row that came to nothing
        wanted, plan = self._config.num_tasks, self._generator.plan(self._config.refusals)
        kept, coming, number = iter(earlier), cycle(plan), 0
        with self._generator.wording(self.rejected) as wording:
            while True:
                cells = [cell for cell, _ in told]  # of the tasks that there are, and of those that wait for their words
                for cell in coming:
                    over = self._over(plan, cells, empty)
                    if len(cells) == wanted or over.issuperset(plan):
                        break
                    if cell in over:
                        continue
                    entry = next(kept, None)
                    found = self._again(entry, cell) if entry else self._one(number, cell, empty[cell], keep)
                    empty[cell] = 0 if found else empty[cell] + 1
                    if found:
                        number += 1
                        cells.append(cell)
                        wording.add(found)
                        on_task(len(cells), wanted)
                settled = wording.settle()
                told += [(cell, ways) for cell, ways in zip(cells[len(told) :], settled, strict=True) if ways]
                if not settled or all(settled):  # else others are made in the place of those that have no words
                    return [made for _, ways in told for made in ways]

    def _over(self, plan: list[Cell], cells: list[Cell], empty: Counter[Cell]) -> set[Cell]:
        """The cells that get no further task: they have no more, or as many are declined as may be."""
        declined = self._generator.is_declined
        full = sum(map(declined, cells)) >= int(self._config.refusals * self._config.num_tasks)
        return {cell for cell in plan if empty[cell] >= GIVE_UP or (full and declined(cell))}

    def _one(self, number: int, cell: Cell, again: int, keep: Callable[[JournalEntry], object]) -> list[Made]:
        """A task in its ways; nothing where the cell could not give one."""
        entry: JournalEntry = {"number": number, "cell": list(cell), "again": again, "found": None, "proof": None}
        before, found = Counter(self.rejected), list[Made]()
        for place in range(TRIES):
            draft = self._draw(entry, place)
            if draft is None:
                continue
            try:
                if (draft.user_id, draft.same) in self._seen:
                    raise Rejected("the same task of the same customer as an earlier one")
                proof = self._generator.prove(draft)
            except Rejected as reason:
                self.rejected[str(reason)] += 1
                continue
            found = self._finished(draft, proof, cell)
            entry |= {"found": place, "proof": proof}
            break
        keep({**entry, "rejected": self.rejected - before})
        return found

    def _again(self, entry: JournalEntry, cell: Cell) -> list[Made]:
        """The task of an entry, composed again with the same draws."""
        if entry["cell"] != list(cell):
            raise UserError(
                "the progress in the folder is that of another command", hint="remove the folder, or name another one"
            )
        self.rejected.update(entry["rejected"])
        if entry["found"] is None:
            return []
        draft = self._draw(entry, entry["found"])
        assert draft is not None  # it was found with these draws
        return self._finished(draft, entry["proof"], cell)

    def _draw(self, entry: JournalEntry, place: int) -> Draft | None:
        number, cell, again = entry["number"], entry["cell"], entry["again"]
        rng = random.Random(f"{self._config.seed}/{number}/{cell}/{again}/{place}")
        id = f"synth-{self._config.domain}-{self._config.seed}-{number:05}"
        return self._generator.draw(id, tuple(cell), rng, lambda user: self._used[user] < self._config.per_user)

    def _finished(self, draft: Draft, proof: JournalEntry, cell: Cell) -> list[Made]:
        self._used[draft.user_id] += 1
        self._seen.add((draft.user_id, draft.same))
        made = self._generator.finish(draft, proof, synth_split(self._generator.split_key(draft)))
        if self._generator.failures is None:
            return made
        return [replace(one, row={**one.row, "made_for": cell[-1]}) for one in made]


def synth_split(key: str) -> str:
    """The split of a user, or of what else a generator keeps apart, the same for every seed and size.

    >>> synth_split("mei_li_1") in ("train-learn", "train-select", "test")
    True
    """
    place = int.from_bytes(hashlib.sha256(f"synth/{key}".encode()).digest()[:8]) / 2**64
    if place < SHARES["test"]:
        return "test"
    return "train-select" if place < SHARES["test"] + SHARES["train-select"] else "train-learn"


def make_tasks(
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
    generator: TaskGenerator[Any] = (TelecomTasks if config.domain == "telecom" else DatabaseTasks)(config, failures)
    runs = {"failures": [run["episodes_sha256"] for run in failures.runs]} if failures else {}
    identity = {**generator.identity(), **runs, "synth": source_hash()}
    with _journal(folder, {"command": command(config), **identity}) as (earlier, keep):
        maker = TaskMaker(config, generator)
        made = maker.make(earlier, keep, on_task)
        facts = write_folder(folder, config, generator, made, rejected=maker.rejected, identity=identity)
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
def _journal(folder: Path, head: dict[str, Any]) -> Iterator[tuple[list[JournalEntry], Callable[[JournalEntry], object]]]:
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

        def keep(entry: JournalEntry) -> None:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            file.flush()

        if not known:
            keep(head)
        yield known[1:], keep
