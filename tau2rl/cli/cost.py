"""`tau2rl cost`: is it cheaper to sample more or to train, from measured runs or from given numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from tau2rl import console
from tau2rl.cli.options import Json
from tau2rl.cli.results import evaluated, stage_report
from tau2rl.errors import UserError
from tau2rl.report import break_even
from tau2rl.report.break_even import BreakEven, MeasuredTasks, Strategy, Tasks
from tau2rl.report.tables import number

RECALLS, FALSE_ACCEPTS = (1.0, 0.95, 0.9, 0.8, 0.7), (0.0, 0.05, 0.1, 0.2, 0.3)
MEASURED, GIVEN, VERIFIER = "From measured runs", "From given numbers", "The verifier"


def cost(
    sampled: Annotated[
        Path | None,
        typer.Option(help="Evaluation of the one that samples.", metavar="RUN_DIR", rich_help_panel=MEASURED, show_default=False),
    ] = None,
    trained: Annotated[
        Path | None,
        typer.Option(help="Evaluation of the trained policy.", metavar="RUN_DIR", rich_help_panel=MEASURED, show_default=False),
    ] = None,
    training: Annotated[
        list[Path] | None,
        typer.Option(
            help="A run that made it; may be repeated.", metavar="RUN_DIR", rich_help_panel=MEASURED, show_default=False
        ),
    ] = None,
    training_cost: Annotated[float | None, typer.Option(min=0, help="Of the training.", rich_help_panel=GIVEN)] = None,
    episode_cost: Annotated[float | None, typer.Option(min=0, help="Of an attempt.", rich_help_panel=GIVEN)] = None,
    sampled_passes: Annotated[
        str | None, typer.Option(help="pass@1, pass@K, K of the one that samples.", metavar="P1,PK,K", rich_help_panel=GIVEN)
    ] = None,
    trained_passes: Annotated[
        str | None, typer.Option(help="The same of the trained policy.", metavar="P1,PK,K", rich_help_panel=GIVEN)
    ] = None,
    sampled_success: Annotated[
        float | None, typer.Option(min=0, max=1, help="Success of the chosen of its k attempts.", rich_help_panel=GIVEN)
    ] = None,
    trained_success: Annotated[float | None, typer.Option(min=0, max=1, help="The same, trained.", rich_help_panel=GIVEN)] = None,
    attempts: Annotated[
        float | None, typer.Option(min=1, help="Expected attempts of sampling, where they are known.", rich_help_panel=GIVEN)
    ] = None,
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="Attempts at most, by sampling.")] = 4,
    trained_k: Annotated[int, typer.Option(min=1, help="Attempts at most, of the trained policy.")] = 1,
    early_stop: Annotated[bool, typer.Option("--early-stop", help="Play one after another until one is accepted.")] = False,
    value: Annotated[float | None, typer.Option(min=0, help="What a success is worth, in the unit of the costs.")] = None,
    recall: Annotated[float, typer.Option(min=0, max=1, help="Successes that it accepts.", rich_help_panel=VERIFIER)] = 1.0,
    false_accepts: Annotated[float, typer.Option(min=0, max=1, help="Failures that it accepts.", rich_help_panel=VERIFIER)] = 0.0,
    verifier_cost: Annotated[float, typer.Option(min=0, help="Of looking at an attempt.", rich_help_panel=VERIFIER)] = 0.0,
    as_json: Json = False,
) -> None:
    """Say from how many tasks on training is cheaper than sampling more, and how that depends on the verifier.

    Costs of measured runs are seconds of the machine that they ran on; given ones are in any one unit.
    """
    runs = {name: run for name, run in (("sampled", sampled), ("trained", trained)) if run is not None}
    counts = {name: evaluated(run) for name, run in runs.items()}
    if len(counts) == 2 and counts["sampled"].keys() != counts["trained"].keys():
        raise UserError("the two runs are not on the same tasks", hint="evaluate both policies on the same tasks")
    paid = training_cost if training_cost is not None else _seconds_of_all(training)
    attempt = {name: _attempt_cost(episode_cost, runs.get(name), name) + verifier_cost for name in ("sampled", "trained")}
    if (training_cost is None) != (episode_cost is None):
        console.say("warning: a measured cost is in seconds of the machine, so the given one must be too")
    sides = (
        Side(k=k, tasks=_tasks(counts.get("sampled"), sampled_passes), success=sampled_success, attempts=attempts),
        Side(k=trained_k, tasks=_tasks(counts.get("trained"), trained_passes), success=trained_success, attempts=None),
    )
    question = CostQuestion(
        paid=paid, sampling=sides[0], trained=sides[1], attempt_costs=(attempt["sampled"], attempt["trained"]), value=value,
        early_stop=early_stop,
    )  # fmt: skip
    answer = question.answer(recall, false_accepts)
    if all(isinstance(side.tasks, MeasuredTasks) for side in sides):
        answer["interval"] = question.interval(recall, false_accepts)
    known = sides[0].tasks is not None and sampled_success is None
    sensitivity = [question.answer(r, f) for r in RECALLS for f in FALSE_ACCEPTS] if known else []
    if as_json:
        console.emit_json({**answer, "sensitivity": sensitivity})
    else:
        _print(answer, sensitivity)


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two policies: what is known of its tasks, and what was said instead."""

    k: int
    tasks: Tasks | None
    success: float | None  # given, whatever the tasks are
    attempts: float | None

    def option(self, attempt_cost: float, recall: float, false_accepts: float, *, early_stop: bool) -> Strategy:
        """What a task costs and how often it succeeds, under such a verifier. Raises UserError."""
        success, attempts = self.success, self.attempts
        if success is None and self.tasks is not None:
            success = break_even.success_of(self.tasks, self.k, recall=recall, false_accepts=false_accepts)
        if attempts is None and early_stop and self.k > 1:
            if self.tasks is None:
                raise UserError("`--early-stop` needs to know how hard the tasks are", hint="name a run, or pass@1 and pass@k")
            attempts = break_even.expected_attempts(self.tasks, self.k, recall=recall, false_accepts=false_accepts)
        return Strategy(attempts=float(self.k) if attempts is None else attempts, attempt_cost=attempt_cost, success=success)


@dataclass(frozen=True, slots=True, kw_only=True)
class CostQuestion:
    """Both policies and all costs; the verifier is what is varied."""

    paid: float
    sampling: Side
    trained: Side
    attempt_costs: tuple[float, float]
    value: float | None
    early_stop: bool

    def options(self, recall: float, false_accepts: float) -> tuple[Strategy, Strategy]:
        """Sampling and the trained policy under such a verifier."""
        sampling = self.sampling.option(self.attempt_costs[0], recall, false_accepts, early_stop=self.early_stop)
        return sampling, self.trained.option(self.attempt_costs[1], recall, false_accepts, early_stop=self.early_stop)

    def answer(self, recall: float, false_accepts: float) -> dict[str, Any]:
        """JSON values: both options, and the break-even of each kind with its reason where there is none."""
        sampling, trained = self.options(recall, false_accepts)
        shown = {
            "recall": recall,
            "false_accepts": false_accepts,
            "training_cost": self.paid,
            "sampling": _json(sampling),
            "trained": _json(trained),
            "by_cost": _break_even(break_even.by_cost(sampling, trained, self.paid)),
            "by_cost_per_success": _break_even(break_even.by_cost_per_success(sampling, trained, self.paid)),
        }
        if self.value is not None:
            shown["by_value"] = _break_even(break_even.by_value(sampling, trained, self.paid, self.value))
        return shown

    def interval(self, recall: float, false_accepts: float) -> dict[str, Any]:
        """95% interval of the break-even by cost per success, over other tasks like these; a null bound: never."""
        counts = [cast(MeasuredTasks, side.tasks).counts for side in (self.sampling, self.trained)]

        def of(chosen: Sequence[int]) -> BreakEven:
            sides = [
                Side(k=side.k, tasks=MeasuredTasks([part[i] for i in chosen]), success=side.success, attempts=side.attempts)
                for side, part in zip((self.sampling, self.trained), counts, strict=True)
            ]
            drawn = CostQuestion(
                paid=self.paid, sampling=sides[0], trained=sides[1], attempt_costs=self.attempt_costs, value=self.value,
                early_stop=self.early_stop,
            )  # fmt: skip
            return break_even.by_cost_per_success(*drawn.options(recall, false_accepts), self.paid)

        low, high = break_even.resampled(of, len(counts[0]))
        return {"by_cost_per_success": [low, high], "method": "bootstrap over tasks, 500 draws"}


def _tasks(counts: Mapping[str, tuple[int, int]] | None, passes: str | None) -> Tasks | None:
    if counts is not None and passes is not None:
        raise UserError("a run and pass@1 with pass@k say the same thing twice", hint="give one of them")
    if passes is not None:
        return break_even.beta_tasks(*passes_of(passes))
    return None if counts is None else MeasuredTasks([counts[task] for task in sorted(counts)])


def passes_of(text: str) -> tuple[float, float, int]:
    """pass@1, pass@K and K of `0.29,0.60,4`. Raises UserError."""
    words = text.split(",")
    try:
        return float(words[0]), float(words[1]), int(words[2])
    except (ValueError, IndexError):
        raise UserError(f"`{text}` is not pass@1, pass@K and K", hint="such as `0.29,0.60,4`") from None


def _seconds_of_all(runs: Sequence[Path] | None) -> float:
    if not runs:
        raise UserError("the cost of the training is not known", hint="name its runs (`--training RUN_DIR`), or give it")
    return sum(_seconds(stage_report(run), f"`{run}`") for run in runs)


def _attempt_cost(given: float | None, run: Path | None, name: str) -> float:
    """Seconds of the machine for an episode, FAILED and repeated ones among them, unless it is given."""
    if given is not None:
        return given
    if run is None:
        raise UserError(
            f"the cost of an attempt of the {name} policy is not known", hint=f"`--{name} RUN_DIR`, or `--episode-cost`"
        )
    report = stage_report(run)
    return _seconds(report, f"the {name} run") / report["cost"]["episodes"]


def _seconds(report: Mapping[str, Any], name: str) -> float:
    account = cast("dict[str, Any]", report.get("cost") or {})
    process = cast("dict[str, Any]", account.get("process") or {"wall_seconds": account.get("seconds")})  # the latter: a pipeline
    if not process["wall_seconds"]:
        raise UserError(f"{name} does not say how long it took: {process.get('reason') or 'no cost in its report'}")
    return float(process["wall_seconds"])


def _json(option: Strategy) -> dict[str, Any]:
    return {"attempts": option.attempts, "attempt_cost": option.attempt_cost, "cost": option.cost, "success": option.success}


def _break_even(found: BreakEven) -> dict[str, Any]:
    return {"tasks": found.tasks, "reason": found.reason or None}


def _print(answer: Mapping[str, Any], sensitivity: Sequence[Mapping[str, Any]]) -> None:
    rows = [["", "attempts a task", "cost of one", "cost a task", "success"]]
    for name in ("sampling", "trained"):
        side = answer[name]
        rows.append(
            [name, f"{side['attempts']:.2f}", f"{side['attempt_cost']:.4g}", f"{side['cost']:.4g}", number(side["success"])]
        )
    console.emit_table(rows)
    console.emit(f"training costs {answer['training_cost']:.4g}; verifier: {_verifier(answer)}")
    kinds = {"by_cost": "same cost", "by_cost_per_success": "same cost of a success", "by_value": "same value less cost"}
    for kind, words in kinds.items():
        if kind in answer:
            console.emit(f"{words}: {_words(answer[kind])}")
    if "interval" in answer:
        low, high = answer["interval"]["by_cost_per_success"]
        console.emit(f"95% interval of the second, over tasks like these: {_bound(low)} to {_bound(high)}")
    if sensitivity:
        last = "by_value" if "by_value" in answer else "by_cost_per_success"
        table = [["recall", "false accepts", "sampling", "trained", "attempts", f"break-even: {kinds[last]}"]]
        for one in sensitivity:
            numbers = [f"{one['recall']:.2f}", f"{one['false_accepts']:.2f}", number(one["sampling"]["success"])]
            more = [number(one["trained"]["success"]), f"{one['sampling']['attempts']:.2f}"]
            table.append([*numbers, *more, "never" if one[last]["tasks"] is None else f"{one[last]['tasks']:,.0f}"])
        console.emit_table(table)


def _verifier(answer: Mapping[str, Any]) -> str:
    perfect = answer["recall"] == 1 and answer["false_accepts"] == 0
    words = f"recall {answer['recall']:g}, false accepts {answer['false_accepts']:g}"
    return f"{words}, which only an oracle has" if perfect else words


def _words(found: Mapping[str, Any]) -> str:
    return found["reason"] if found["tasks"] is None else f"from {found['tasks']:,.0f} tasks on training is cheaper"


def _bound(tasks: float | None) -> str:
    return "never" if tasks is None else f"{tasks:,.0f}"
