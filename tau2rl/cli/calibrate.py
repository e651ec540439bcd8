"""`tau2rl calibrate`: turn rewards that success goes with, checked on tasks that they were not fitted on, frozen for `grpo`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tau2rl import console
from tau2rl.cli.options import Json
from tau2rl.cli.printing import shown
from tau2rl.cli.results import sampled
from tau2rl.config import AlgoConfig
from tau2rl.errors import UserError
from tau2rl.report.tables import NONE, number
from tau2rl.reward.calibration import (
    INTENDED,
    CalibrationReport,
    CalibrationSpec,
    TierRow,
    calibrate as fit,
    recipe_table,
    write_recipe,
)
from tau2rl.reward.tiers import TABLES
from tau2rl.runs.folder import read_config, stage_of
from tau2rl.runs.provenance import file_hash

PLAYED = ("eval", "seed", "rft-filter")
NEVER = 10**9  # a support that nothing has: every value stays, and is only checked


def calibrate(
    runs: Annotated[
        list[Path], typer.Argument(help="Runs of the current policy on training tasks.", metavar="RUN_DIR...", show_default=False)
    ],
    output: Annotated[Path, typer.Option(help="The recipe; written when it passes.", metavar="FILE")] = Path("recipe.json"),
    start: Annotated[
        Literal["dense", "calibrated", "reference_write"],
        typer.Option(help="Where values come from that cannot be told, and what counts as a match."),
    ] = "calibrated",
    estimator: Annotated[
        Literal["mt_grpo", "gtpo", "mt_gtpo"], typer.Option(help="Under which the signs are checked.")
    ] = "mt_gtpo",
    gamma: Annotated[float, typer.Option(min=0, max=1, help="Its discount.")] = 0.9,
    outcome_weight: Annotated[float, typer.Option(min=0, help="Its weight of the outcome.")] = 0.3,
    alpha: Annotated[float, typer.Option(min=0, help="A value is this times the correlation.")] = 1.0,
    delta: Annotated[float, typer.Option(min=0, help="A weaker correlation is worth 0.")] = 0.05,
    min_support: Annotated[int, typer.Option(min=1, help="Rollouts with a tier, and without it.")] = 20,
    free: Annotated[
        list[str] | None,
        typer.Option(
            help="A tier whose sign is left to the data: gold, soft, write, error or duplicate; may be repeated.",
            metavar="TIER",
            show_default=False,
        ),
    ] = None,
    allow_held_out: Annotated[bool, typer.Option("--allow-held-out", help="Accept test and selection tasks.")] = False,
    as_json: Json = False,
) -> None:
    """Give each tier of turns the reward that success goes with, check it on a fifth of the tasks, and freeze it for `grpo`.

    Shown are the values before and after, whether the mean advantage of each tier has the intended sign, and the same check of
    the plain tables. A recipe that fails its check is not written. Exits with 0 when it is, 1 when not.
    """
    if unknown := set(free or ()) - {tier.value for tier in INTENDED}:
        raise UserError(f"no sign is intended of `{min(unknown)}`", hint=f"one of: {', '.join(tier.value for tier in INTENDED)}")
    intended = {tier: sign for tier, sign in INTENDED.items() if tier.value not in (free or ())}
    rows = _rows(runs, start, allow_held_out=allow_held_out)
    algo = AlgoConfig(estimator=estimator, gamma=gamma, outcome_weight=outcome_weight)
    spec = CalibrationSpec(alpha=alpha, delta=delta, min_support=min_support, algo=algo)
    after = fit(rows, TABLES[start].values, spec, intended)
    only_check = replace(spec, min_support=NEVER)
    plain = {name: fit(_rows(runs, name, allow_held_out=True), table.values, only_check) for name, table in TABLES.items()}
    problems = [*after.problems]
    if all(tier.kept for tier in after.tiers):
        problems.append("no tier has the support to be calibrated")
    content = {
        "values": after.recipe.values,
        "intended": {tier.value: sign for tier, sign in intended.items()},
        "writes_only": TABLES[start].writes_only,
        "start": start,
        "constants": {"alpha": alpha, "delta": delta, "min_support": min_support, "holdout": spec.holdout, "seed": spec.seed},
        "algo": {"estimator": estimator, "gamma": gamma, "outcome_weight": outcome_weight},
        "sources": [{"run": str(run), "episodes_sha256": file_hash(run / "episodes.jsonl")} for run in runs],
        "rollouts": len(rows),
        "check": _json(after),
        "problems": problems,
        "accepted": not problems,
    }
    digest = write_recipe(output, content) if not problems else None
    if as_json:
        console.emit_json({**content, "digest": digest, "plain": {name: _json(one) for name, one in plain.items()}})
    else:
        _print(after, plain, start)
        for problem in problems:
            console.emit(f"not accepted: {problem}")
        if wrong := [tier.tier.value for tier in after.tiers if tier.aligned is False and not tier.kept]:
            console.say(f"hint: `--free {wrong[0]}` where what is intended of such a turn does not hold on your tasks")
        if digest:
            console.emit(f"{shown(output)}: recipe {digest}; train with `--set reward.recipe={shown(output)}`")
    raise typer.Exit(1 if problems else 0)


def _rows(runs: Sequence[Path], table: str, *, allow_held_out: bool) -> list[TierRow]:
    """A row a rollout; the attempts at a task in one run are a group. Raises UserError."""
    from tau2rl.env.tasks import refuse_held_out
    from tau2rl.env.turn_rewards import tiers_of

    rules = recipe_table(TABLES[table].values, writes_only=TABLES[table].writes_only)
    out: list[TierRow] = []
    for group, run in enumerate(runs):
        if (stage := stage_of(read_config(run))) not in PLAYED:
            raise UserError(f"`{run}` is a run of `{stage}`", hint=f"attempts at tasks are in runs of {', '.join(PLAYED)}")
        kept = [one for part in sampled(run).values() for one in part if one.episode.turns]
        if not allow_held_out:
            refuse_held_out({one.attempt.task for one in kept})
        for one in kept:
            turns = tiers_of(one.episode, rules)
            out.append(TierRow(task=one.attempt.task.key, group=group, success=one.episode.solved, turns=turns))
    if not out:
        raise UserError("the runs have no episodes to calibrate on")
    return out


def _json(report: CalibrationReport) -> dict[str, Any]:
    tiers = {
        tier.tier.value: {
            "value": tier.value, "support": tier.support, "phi": tier.phi, "kept": tier.kept or None, "intended": tier.intended,
            "advantage": tier.advantage, "immediate_advantage": tier.immediate_advantage, "aligned": tier.aligned,
            "gradient_share": tier.gradient_share, "held_out_turns": tier.held_out_turns,
        }
        for tier in report.tiers
    }  # fmt: skip
    return {"tiers": tiers, "dead_turns": report.dead_turns, "correlation": report.correlation}


def _print(after: CalibrationReport, plain: Mapping[str, CalibrationReport], start: str) -> None:
    before = {tier.tier: tier for tier in plain[start].tiers}
    rows = [["tier", "support", "phi", "before", "after", "wanted", "advantage before", "after", "gradient before", "after", ""]]
    for tier in after.tiers:
        was = before[tier.tier]
        wanted = {1: "+", -1: "-", 0: ""}[tier.intended]
        rows.append(
            [tier.tier.value, str(tier.support), number(tier.phi), f"{was.value:.2f}", f"{tier.value:.2f}", wanted,
             _signed(was.advantage), _signed(tier.advantage), f"{was.gradient_share:.0%}", f"{tier.gradient_share:.0%}",
             tier.kept]
        )  # fmt: skip
    console.emit_table(rows)
    table = [["turn rewards", "wrong signs", "dead turns", "reward and success"]]
    for name, one in {"this recipe": after, **plain}.items():
        wrong = [tier.tier.value for tier in one.tiers if tier.aligned is False]
        table.append([name, ", ".join(wrong) or NONE, number(one.dead_turns), number(one.correlation)])
    console.emit_table(table)


def _signed(value: float | None) -> str:
    return NONE if value is None else f"{value:+.3f}"
