"""`tau2rl blame`: who is to blame for every episode without success, and the score with and without what was not the agent's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tau2rl import console
from tau2rl.cli.judging import PANEL, JudgeApiBase, JudgeKey, JudgeModel, Judgments, asked_model, spent_words
from tau2rl.cli.options import Json
from tau2rl.errors import UserError
from tau2rl.report.aggregate import by_domain, counted
from tau2rl.report.estimators import Estimate, mean_over_tasks
from tau2rl.report.tables import number
from tau2rl.runs import records
from tau2rl.types import EpisodeRecord, Fault

if TYPE_CHECKING:
    from tau2rl.verify.blame import Blame, TaskFacts
    from tau2rl.verify.llm_judge import AskedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributed:
    """An episode with who is to blame: `Attributed(record=..., facts=..., blame=Blame(...))`."""

    record: EpisodeRecord
    facts: TaskFacts
    blame: Blame | None

    @property
    def solved(self) -> bool:
        """Whether tau2 gave it 1."""
        return self.record.episode.solved

    @property
    def counts(self) -> bool:
        """Whether it says something about the agent: neither user nor task nor infrastructure had a hand in it."""
        return self.blame is None or self.blame.fault is Fault.AGENT


def blame(
    run: Annotated[Path, typer.Argument(help="A run that played episodes.", metavar="RUN_DIR", show_default=False)],
    judge_model: JudgeModel = None,
    judge_api_base: JudgeApiBase = None,
    judge_api_key_env: JudgeKey = None,
    judgments: Judgments = None,
    show_reference: Annotated[
        bool,
        typer.Option("--show-reference", help="Declare that the reviewer sees the reference actions.", rich_help_panel=PANEL),
    ] = False,
    as_json: Json = False,
) -> None:
    """Say who is to blame for every episode without success, agent, user, task or infra, and name the agent's own failures.

    By rules. Raw and adjusted success stand side by side: the adjusted one leaves out every episode, solved or not, in which the
    user simulator broke its own rules, or whose task is defective. With `--judge-model` a model reviews every simulated user too,
    and how it agrees with the rules is shown; it moves no score, and sees no reference actions unless `--show-reference` says so.
    """
    model = asked_model(judge_model, judge_api_base, judge_api_key_env, judgments)
    if show_reference and model is None:
        raise UserError("nobody is named who could see the reference", hint="name a model with `--judge-model`")
    attributed = _attributed(run)
    if not attributed:
        raise UserError(f"`{run}` has no episodes")
    tasks: dict[str, list[Attributed]] = {}
    for one in attributed:
        tasks.setdefault(one.record.attempt.task.key, []).append(one)
    domains = {name: [one for part in parts.values() for one in part] for name, parts in by_domain(tasks).items()}
    rows = {name: _scores(part) for name, part in {**domains, "overall": attributed}.items()}
    reviews = None if model is None else _reviews(attributed, model, sees_reference=show_reference)
    if as_json:
        episodes = [_json(one) for one in attributed if one.blame is not None]
        extra = {} if model is None or reviews is None else {"review": {**reviews, "judge": model.spent()}}
        console.emit_json({"run": str(run), "scores": rows, "episodes": episodes, **extra})
        return
    table = [["domain", "raw [95%]", "adjusted [95%]", "left out", *(fault.value for fault in Fault)]]
    for name, row in rows.items():
        if name != "overall" or len(rows) > 2 or len(domains) == 1:
            faults = [str(row["faults"].get(fault.value, 0)) for fault in Fault]
            table.append([name, _interval(row["raw"]), _interval(row["adjusted"]), str(row["left_out"]), *faults])
    console.emit_table(table)
    for fault in Fault:
        if names := rows["overall"]["names"].get(fault.value):
            console.emit(f"{fault.value}: " + ", ".join(f"{count} {name}" for name, count in names.items()))
    solved = rows["overall"]["left_out_solved"]
    if solved:
        console.emit(f"{solved} of the episodes that were left out were solved, with the user's mistake or on a defective task")
    if model is not None and reviews is not None:
        _print_reviews(reviews)
        console.emit(spent_words(model))


def _attributed(run: Path) -> list[Attributed]:
    from tau2rl.verify.blame import blame as blame_of, facts_of

    kept = counted(records.read_run(run))
    facts = {record.attempt.task: facts_of(record.attempt.task) for record in kept}
    return [
        Attributed(record=record, facts=known, blame=blame_of(record.episode, known))
        for record, known in ((record, facts[record.attempt.task]) for record in kept)
        if not record.attempt.greedy
    ]


def _reviews(attributed: Sequence[Attributed], model: AskedModel, *, sees_reference: bool) -> dict[str, Any]:
    """What the reviewer says of each user that was played to an end, and how that agrees with the gates, JSON-ready."""
    from tau2rl.verify.blame import user_faults
    from tau2rl.verify.reviewer import agreement, reviewed

    played = [one for one in attributed if one.record.episode.failure is None]
    found = reviewed(model, [(one.record.episode, one.facts) for one in played], sees_reference=sees_reference)
    gates = [next(user_faults(one.record.episode, one.facts), None) for one in played]
    return {
        "sees_reference": sees_reference,
        **agreement([(gate is not None, review.blames) for gate, review in zip(gates, found, strict=True)]),
        "by_reviewer": [
            {"episode": one.record.attempt.key, "gate": gate.name if gate else "none", **asdict(review)}
            for one, gate, review in zip(played, gates, found, strict=True)
            if gate is not None or review.blames
        ],
    }


def _print_reviews(reviews: dict[str, Any]) -> None:
    console.emit_table(
        [
            ["", "reviewer: a mistake", "reviewer: none"],
            ["gates: a mistake", str(reviews["both"]), str(reviews["gates_only"])],
            ["gates: none", str(reviews["reviewer_only"]), str(reviews["neither"])],
        ]
    )
    kappa = "" if reviews["kappa"] is None else f", kappa {reviews['kappa']:.2f}"
    saw = "saw the reference actions" if reviews["sees_reference"] else "saw no reference actions"
    console.emit(f"gates and reviewer agree on {number(reviews['agreement'])} of {reviews['episodes']} users{kappa}; it {saw}")


def _scores(part: Sequence[Attributed]) -> dict[str, Any]:
    out = [one for one in part if not one.counts]
    failed = [one for one in part if not one.solved and one.blame is not None]
    names = {fault: Counter(one.blame.name for one in failed if one.blame and one.blame.fault is fault) for fault in Fault}
    played = [one for one in part if one.record.episode.grade is not None]
    return {
        "raw": _success(played).to_json(),
        "adjusted": _success([one for one in played if one.counts]).to_json(),
        "left_out": len(out),
        "left_out_solved": sum(one.solved for one in out),
        "faults": {fault.value: sum(counts.values()) for fault, counts in names.items()},
        "names": {fault.value: dict(counts.most_common()) for fault, counts in names.items() if counts},
    }


def _success(part: Sequence[Attributed]) -> Estimate:
    """Mean over tasks of the share solved; a task of which nothing is left does not count."""
    tasks: dict[str, list[bool]] = {}
    for one in part:
        tasks.setdefault(one.record.attempt.task.key, []).append(one.solved)
    if not tasks:
        return Estimate(value=None, ci95=None, reason="no episode is left")
    attempts = len(tasks) / sum(1 / len(marks) for marks in tasks.values())
    return mean_over_tasks([sum(marks) / len(marks) for marks in tasks.values()], trials=attempts)


def _json(one: Attributed) -> dict[str, Any]:
    assert one.blame is not None
    found = {"fault": one.blame.fault.value, "name": one.blame.name, "detail": one.blame.detail}
    return {"episode": one.record.attempt.key, "solved": one.solved, **found}


def _interval(estimate: dict[str, Any]) -> str:
    ci95 = estimate["ci95"]
    return number(estimate["value"]) + (f" [{ci95[0]:.3f}, {ci95[1]:.3f}]" if ci95 else "")
