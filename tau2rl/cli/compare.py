"""`tau2rl compare` and `plan`: is one policy better than another, and how large must an evaluation be to say so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from tau2rl import console
from tau2rl.cli.cost import passes_of
from tau2rl.cli.options import Json
from tau2rl.cli.printing import shown
from tau2rl.cli.results import evaluated, sampled, stage_report
from tau2rl.errors import UserError
from tau2rl.report import power
from tau2rl.report.break_even import beta_tasks
from tau2rl.report.compare import Flip, compare as compare_values, flips, holm
from tau2rl.report.estimators import measures
from tau2rl.report.power import Design, Spread
from tau2rl.report.tables import number
from tau2rl.runs.folder import read_config, stage_of
from tau2rl.runs.provenance import differences, is_subject, read_environment, settings_of

Counts = Mapping[str, tuple[int, int]]  # task -> (attempts, solved)
Solved = Mapping[str, Mapping[int, bool]]  # task -> attempt -> whether it was solved
# What makes rows that never stand in one table, `--force` or not: the beginning of a key of the identity -> what it is.
NEVER = {
    "settings.chat.protocol": "the chat protocol",
    "settings.chat.thinking": "thinking",
    "settings.user": "the user simulator",
    "bench.user": "the user simulator",
    "bench.data": "the tasks and their data",
    "bench.sources": "the tasks and their data",
}
SHOWN = 5  # flips of a pair that are printed; `--json` has all
PUBLISHED = "0.29,0.60,4"  # pass@1, pass@4 of a published 4B model, see docs/cost.md


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Two or more evaluations.", metavar="RUN_DIR...", show_default=False)],
    force: Annotated[bool, typer.Option("--force", help="Compare runs that measured different things, with a warning.")] = False,
    as_json: Json = False,
) -> None:
    """Compare evaluations on the same tasks, task by task: each run minus each run behind it, with Holm's p-values.

    Refused when they differ in more than the agent: another seed, limit or tool schema makes another measurement of it.
    Runs of other tasks, another chat protocol, thinking or user simulator are refused even with `--force`.
    """
    if len(runs) < 2:
        raise UserError("one run is nothing to compare", hint="name two or more")
    _refuse_other_stages(runs)
    unequal = {key for a, b in combinations(runs, 2) for key in _refuse_other_measurements(a, b, force=force)}
    counts = {run: evaluated(run) for run in runs}
    if len(counts) < len(runs):
        raise UserError("a run is named twice")
    names = [name for name, _, _ in _measures(counts)]
    pairs = [_pair(a, b, counts) for a, b in combinations(runs, 2)]
    for name in names:
        adjusted = holm([pair["measures"][name]["p"] for pair in pairs])
        for pair, p in zip(pairs, adjusted, strict=True):
            pair["measures"][name]["p_holm"] = p
    if as_json:
        console.emit_json({"runs": [str(run) for run in runs], "differing": sorted(unequal), "pairs": pairs})
    else:
        _print(runs, names, pairs)


def plan(
    effect: Annotated[float, typer.Option(min=0.01, help="The true difference in pass@1, in percentage points.")],
    wanted: Annotated[float, typer.Option("--power", min=0.1, max=0.999, help="The chance to find it.")] = 0.8,
    alpha: Annotated[float, typer.Option(min=0.0001, max=0.5, help="The chance to find one that is not there.")] = 0.05,
    tasks: Annotated[int | None, typer.Option(min=2, help="As many tasks as there are: what they can show.")] = None,
    attempts: Annotated[str, typer.Option(help="Attempts at a task.", metavar="N,N,...")] = "1,2,4,8,16",
    repetitions: Annotated[str, typer.Option(help="Repetitions of each run.", metavar="R,R,...")] = "1",
    like: Annotated[
        list[Path] | None,
        typer.Option(help="An evaluation whose tasks are like these; with two, their true differences too.", metavar="RUN_DIR"),
    ] = None,
    passes: Annotated[str, typer.Option(help="Else: pass@1, pass@K, K of the policy.", metavar="P1,PK,K")] = PUBLISHED,
    effect_sd: Annotated[
        float | None,
        typer.Option(
            min=0, help="How the true difference varies between tasks, in points; else measured, or 0.", show_default=False
        ),
    ] = None,
    run_sd: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="How much whole runs differ beyond the luck of attempts (training seeds, days), in points; else measured in the "
            "repetitions of `--like`, or 0.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say how many tasks, attempts and repetitions it takes to find a difference, compared task by task on the same tasks."""
    spread = _spread(like or [], passes, effect_sd, run_sd)
    designs = [
        _design(n, r, spread, effect / 100, wanted=wanted, alpha=alpha, tasks=tasks)
        for r in _numbers(repetitions, "--repetitions")
        for n in _numbers(attempts, "--attempts")
    ]
    if as_json:
        console.emit_json({"effect": effect / 100, "power": wanted, "alpha": alpha, **asdict(spread), "designs": designs})
        return
    head = ["attempts", "repetitions", "tasks needed", "episodes of both"]
    more = [f"power with {tasks}", f"finds with {tasks}"] if tasks else []
    rows = [
        [str(one["attempts"]), str(one["repetitions"]), _count(one["tasks"]), _count(one["episodes"])]
        + ([f"{one['power']:.2f}", f"{100 * one['detects']:.1f} points"] if tasks else [])
        for one in designs
    ]
    console.emit_table([[*head, *more], *rows])
    console.emit(
        f"a difference of {effect:g} points with power {wanted:g}, p < {alpha:g}, paired over tasks; luck p (1 - p) "
        f"{spread.luck:.3f}, sd between tasks {100 * spread.effect_sd:.1f} points, of whole runs {100 * spread.run_sd:.1f}"
    )
    for run in like or () if run_sd is None else ():
        if repeated := stage_report(run).get("repetitions"):
            console.emit(f"`{shown(run)}`: the last is of {repeated['count']} repetitions, a few of which say little about it")
    if any(one["tasks"] is None for one in designs):
        console.emit("-: whole runs differ too much, and no number of tasks is enough: more repetitions are needed")


def _refuse_other_stages(runs: Sequence[Path]) -> None:
    """Raise UserError where a run is no evaluation, before all that it differs in is listed."""
    for run in runs:
        if (stage := stage_of(read_config(run))) != "eval":
            raise UserError(f"{shown(run)} is no evaluation but a run of `{stage}`", hint="`tau2rl report` shows it")


def _refuse_other_measurements(a: Path, b: Path, *, force: bool) -> list[str]:
    """The keys in which two runs differ in more than the agent. Raises UserError, unless forced; for those of `NEVER` always."""
    unequal = [d for d in differences(_identity(a), _identity(b)) if not is_subject(d[0])]
    lines = "\n".join(f"  {key}: {_said(left)} and {_said(right)}" for key, left, right in unequal)
    never = {what: None for begin, what in NEVER.items() for key, _, _ in unequal if f"{key}.".startswith(f"{begin}.")}
    if never:
        raise UserError(
            f"`{shown(a)}` and `{shown(b)}` never stand in one table: they differ in {', '.join(never)}\n{lines}",
            hint="run one of them again with the other's settings",
        )
    message = f"`{shown(a)}` and `{shown(b)}` did not measure the same thing; these differ\n{lines}"
    if unequal and not force:
        anyway = "" if any(key.startswith("settings.tasks") for key, _, _ in unequal) else ", or look anyway with `--force`"
        raise UserError(message, hint=f"run one of them again with the other's settings{anyway}")
    if unequal:
        console.say(f"warning: {message}\n")
    return [key for key, _, _ in unequal]


def _said(value: object) -> str:
    return "not set" if value is None else repr(value)


def _identity(run: Path) -> dict[str, Any]:
    """What a run stands on; a setting that its version did not have yet has the default, under which it was played."""
    config = read_config(run)
    identity = cast("dict[str, Any]", read_environment(run, config)["identity"])
    return {**identity, "settings": {**settings_of(config), **identity.get("settings", {})}}


def _measures(counts: Mapping[Path, Counts]) -> list[Any]:
    """pass@1, and with more attempts the pass@k and pass^k of the largest k that all runs have."""
    fewest = min((n for tasks in counts.values() for n, _ in tasks.values()), default=1)
    return [one for one in measures(fewest) if one[2] in (1, fewest) and one[0] != "pass^1"]


def _pair(a: Path, b: Path, counts: Mapping[Path, Counts]) -> dict[str, Any]:
    """One run minus another, JSON-ready, but for Holm's p-values, which take all pairs."""
    found: dict[str, Any] = {}
    for name, estimator, k in _measures(counts):
        values = [{task: estimator(n, c, k) for task, (n, c) in counts[run].items()} for run in (a, b)]
        result = compare_values(*values)
        found[name] = {**asdict(result), "difference": result.difference.to_json()}
    shares = [{task: c / n for task, (n, c) in counts[run].items()} for run in (a, b)]
    solved = (_attempts(a), _attempts(b))
    return {"a": str(a), "b": str(b), "measures": found, "flips": [_flip(one, *solved) for one in flips(*shares)]}


def _attempts(run: Path) -> Solved:
    return {task: {record.attempt.index: record.episode.solved for record in part} for task, part in sampled(run).items()}


def _flip(flip: Flip, a: Solved, b: Solved) -> dict[str, Any]:
    """A flip with one attempt of each run that shows it: solved by the better one, not by the other."""
    first, second = (
        min((index for index, solved in side.get(flip.task, {}).items() if solved == won), default=None)
        for side, won in ((a, flip.a > flip.b), (b, flip.b > flip.a))
    )
    return {**asdict(flip), "attempt_a": first, "attempt_b": second}


def _print(runs: Sequence[Path], names: Sequence[str], pairs: Sequence[Mapping[str, Any]]) -> None:
    several = len(pairs) > 1
    letters = dict(zip(map(str, runs), map(_letter, range(len(runs))), strict=True))
    values: dict[str, Mapping[str, Any]] = {}
    for pair in pairs:
        values |= {pair[side]: {name: pair["measures"][name][side] for name in names} for side in ("a", "b")}
    rows = [["", "run", *names]]
    rows += [[letter, shown(Path(run)), *(number(values[run][name]) for name in names)] for run, letter in letters.items()]
    console.emit_table(rows)
    table = [["", "", "difference [95%]", "p", *(["p (Holm)"] if several else [])]]
    for pair in pairs:
        for name in names:
            one, label = pair["measures"][name], f"{letters[pair['a']]} - {letters[pair['b']]}"
            table.append([label, name, _interval(one["difference"]), _p(one["p"]), *([_p(one["p_holm"])] if several else [])])
    console.emit_table(table)
    for pair in pairs:
        for line in _lines(pair, f"{letters[pair['a']]} - {letters[pair['b']]}", shows=SHOWN if not several else 1):
            console.emit(line)


def _lines(pair: Mapping[str, Any], label: str, *, shows: int) -> list[str]:
    """What the table of a pair cannot say: how sure, what it could have found, which tasks flipped and where to look."""
    one = pair["measures"]["pass@1"]
    low, high = one["bootstrap"]
    out = [f"{label}: {one['tasks']} tasks, paired; pass@1 bootstrap [{low:+.3f}, {high:+.3f}], p by sign flips (mid-p)"]
    if one["detects"] is not None:
        out.append(f"  such a comparison finds a true difference of {one['detects']:.3f} in pass@1 with power 0.8")
    for name, found in pair["measures"].items():
        if m := found["mcnemar"]:
            out.append(
                f"  {name}: only the first solved {m['only_a']}, only the second {m['only_b']}, McNemar mid-p {_p(m['mid_p'])}"
            )
    if pair["flips"]:
        out.append(f"  {len(pair['flips'])} tasks are solved by most attempts of one run alone, such as")
    for flip in pair["flips"][:shows]:
        sides = ((pair["a"], flip["attempt_a"]), (pair["b"], flip["attempt_b"]))
        looks = [f"tau2rl show {shown(Path(run))} {flip['task']} --attempt {at}" for run, at in sides if at is not None]
        out.append(f"    {flip['task']}: {flip['a']:.2f} and {flip['b']:.2f}" + "".join(f"\n      {look}" for look in looks))
    return out


def _letter(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else str(index + 1)


def _p(value: float) -> str:
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def _interval(difference: Mapping[str, Any]) -> str:
    ci95 = difference["ci95"]
    return f"{difference['value']:+.3f}" + (f" [{ci95[0]:+.3f}, {ci95[1]:+.3f}]" if ci95 else f" ({difference['reason']})")


def _spread(like: Sequence[Path], passes: str, effect_sd: float | None, run_sd: float | None) -> Spread:
    """What luck there is: measured in the runs that were named, else that of Beta distributed tasks."""
    if len(like) > 2:
        raise UserError("`--like` takes one run or two")
    sides = [evaluated(run) for run in like]
    if len(sides) == 2 and sides[0].keys() != sides[1].keys():
        raise UserError("the two runs are not on the same tasks")
    per_task = [[side[key] for key in sorted(side)] for side in sides]
    lucks = [power.luck_of(counts) for counts in per_task] if like else [power.luck_of(beta_tasks(*passes_of(passes)))]
    if any(luck is None for luck in lucks):
        raise UserError("luck cannot be told from a single attempt a task", hint="name a run with `--num-samples` 2 or more")
    measured = power.effect_sd_of(*per_task) if len(per_task) == 2 else None
    given = None if effect_sd is None else effect_sd / 100
    return Spread(
        luck=sum(cast("list[float]", lucks)) / len(lucks),
        effect_sd=given if given is not None else measured or 0.0,
        run_sd=run_sd / 100 if run_sd is not None else _run_sd(like),
    )


def _run_sd(like: Sequence[Path]) -> float:
    """What the standard deviation between the repetitions of these runs has beyond the luck of their attempts; else 0."""
    found = [stage_report(run).get("repetitions") for run in like]
    repeated: list[dict[str, float | None]] = [one["overall"] for one in found if one]
    pairs = [(one["sd"], one["sd_by_attempts"]) for one in repeated]
    excess = [sd**2 - luck**2 for sd, luck in pairs if sd is not None and luck is not None]
    return max(0.0, sum(excess) / len(excess)) ** 0.5 if excess else 0.0


def _design(
    attempts: int, repetitions: int, spread: Spread, effect: float, *, wanted: float, alpha: float, tasks: int | None
) -> dict[str, Any]:
    needed = power.tasks_needed(effect, spread, attempts=attempts, repetitions=repetitions, wanted=wanted, alpha=alpha)
    episodes = None if needed is None else Design(tasks=needed, attempts=attempts, repetitions=repetitions).episodes
    out: dict[str, Any] = {"attempts": attempts, "repetitions": repetitions, "tasks": needed, "episodes": episodes}
    if tasks is not None:
        se = Design(tasks=tasks, attempts=attempts, repetitions=repetitions).se(spread)
        out["power"] = power.power(effect, se, tasks, alpha=alpha)
        out["detects"] = power.smallest_effect(se, tasks, wanted=wanted, alpha=alpha)
    return out


def _numbers(text: str, option: str) -> list[int]:
    try:
        found = [int(word) for word in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise UserError(f"`{option} {text}` is not a list of counts", hint="such as `1,2,4`")
    return found


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
