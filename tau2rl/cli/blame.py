"""`tau2rl blame`: who is to blame for every episode without success, and the score with and without what was not the agent's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tau2rl import console
from tau2rl.cli.judge_options import PANEL, JudgeApiBase, JudgeKey, JudgeModel, Judgments, asked_model, spent_words
from tau2rl.cli.options import Json
from tau2rl.config import PlayConfig, StageConfig
from tau2rl.errors import UserError
from tau2rl.report.aggregate import counted
from tau2rl.report.tables import interval, number, quantity
from tau2rl.runs import records
from tau2rl.runs.folder import read_config
from tau2rl.types import Fault
from tau2rl.verify.fault_names import explained

if TYPE_CHECKING:
    from tau2rl.env.asked_model import AskedModel


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
    config = config_of(run)
    found = attributed_run(run, config)
    rows, domains = found["scores"], [name for name in found["scores"] if name != "overall"]
    reviews = None if model is None else _reviews(run, model, sees_reference=show_reference)
    if as_json:
        extra = {} if model is None or reviews is None else {"review": {**reviews, "judge": model.spent()}}
        console.emit_json({"run": str(run), "scores": rows, "episodes": found["episodes"], **extra})
        return
    table = [["domain", "raw [95%]", "adjusted [95%]", "left out", *(fault.value for fault in Fault)]]
    for name, row in rows.items():
        if name != "overall" or len(rows) > 2 or len(domains) == 1:
            faults = [str(row["faults"].get(fault.value, 0)) for fault in Fault]
            table.append([name, interval(row["raw"]), interval(row["adjusted"]), str(row["left_out"]), *faults])
    console.emit_table(table)
    for fault in Fault:
        if names := rows["overall"]["names"].get(fault.value):
            console.emit(f"{fault.value}: " + ", ".join(f"{count} {name}" for name, count in names.items()))
    if solved := rows["overall"]["left_out_solved"]:
        of_solved = Counter(one["name"] for one in found["episodes"] if one["solved"])
        names = ", ".join(f"{count} {name}" for name, count in of_solved.most_common())
        console.emit(f"solved, and left out with the user's mistake or on a defective task: {solved} ({names})")
    for line in explanation(config, [one["name"] for one in found["episodes"]]):
        console.emit_words(f"  {line}")
    if model is not None and reviews is not None:
        _print_reviews(reviews)
        console.emit(spent_words(model))


def explanation(config: StageConfig | None, names: Iterable[str]) -> list[str]:
    """What the names of faults in a run of these settings mean, a line each."""
    return explained(names, scripted=isinstance(config, PlayConfig) and config.user.kind == "scripted")


def config_of(run: Path) -> StageConfig | None:
    """The settings of a run, None where this version cannot read them: who is to blame is in its episodes."""
    try:
        return read_config(run)
    except UserError:
        return None


def attributed_run(run: Path, config: StageConfig | None) -> dict[str, Any]:
    """The account of a run's episodes, kept in its folder where that can be written. Raises UserError."""
    from tau2rl.verify.attribution import account, attribute, keep

    attributed = attribute(records.read_run(run))
    if not attributed:
        raise UserError(f"`{run}` has no episodes")
    found = account(attributed, config.tasks.domains if isinstance(config, PlayConfig) else ())
    try:
        keep(run, found)
    except OSError as error:
        console.say(f"warning: `tau2rl report` and `show` will not have it: cannot write into `{run}`: {error.strerror}")
    return found


def _reviews(run: Path, model: AskedModel, *, sees_reference: bool) -> dict[str, Any]:
    """What the reviewer says of each user that was played to an end, and how that agrees with the gates, JSON-ready."""
    from tau2rl.verify.attribution import agreement, reviewed
    from tau2rl.verify.blame import facts_of, user_faults

    played = [one for one in counted(records.read_run(run)) if one.episode.failure is None and not one.attempt.greedy]
    facts = {one.attempt.task: facts_of(one.attempt.task) for one in played}
    asked = [(one.episode, facts[one.attempt.task]) for one in played]
    found = reviewed(model, asked, sees_reference=sees_reference)
    gates = [next(user_faults(episode, known), None) for episode, known in asked]
    return {
        "sees_reference": sees_reference,
        **agreement([(gate is not None, review.blames) for gate, review in zip(gates, found, strict=True)]),
        "by_reviewer": [
            {"episode": one.attempt.key, "gate": gate.name if gate else "none", **asdict(review)}
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
    console.emit(
        f"gates and reviewer agree on {number(reviews['agreement'])} of {quantity(reviews['episodes'], 'user')}{kappa}; it {saw}"
    )
