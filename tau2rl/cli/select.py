"""`tau2rl select`: what best of k is worth without an oracle, on the attempts that a run has kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tau2rl import console, plugins
from tau2rl.cli.options import Json
from tau2rl.cli.results import evaluated, sampled
from tau2rl.errors import UserError
from tau2rl.report import best_of_k
from tau2rl.report.aggregate import by_domain
from tau2rl.report.best_of_k import Scored
from tau2rl.report.compare import holm
from tau2rl.report.tables import number
from tau2rl.types import EpisodeRecord

if TYPE_CHECKING:
    from tau2rl.verify.verifiers import Scorer

SHIPPED = ("rules", "consistency", "logprob")


def select(
    run: Annotated[Path, typer.Argument(help="A finished evaluation.", metavar="RUN_DIR", show_default=False)],
    k: Annotated[int | None, typer.Option("-k", "--k", min=1, help="Attempts to choose from. (default: all)")] = None,
    verifier: Annotated[
        list[str] | None,
        typer.Option(
            help="rules, consistency, logprob, or yours as `package.module:name`; may be repeated. (default: those three)",
            metavar="NAME",
            show_default=False,
        ),
    ] = None,
    accept_from: Annotated[
        float, typer.Option(min=0, max=1, help="The score from which an attempt is accepted, and early stop ends.")
    ] = 0.5,
    as_json: Json = False,
) -> None:
    """Choose one of k kept attempts at each task by a verifier, and say what that is worth: pass@1 < selected@k < pass@k.

    A verifier sees what a deployment would: policy, messages, calls and results; never the task's criteria or its grade.
    No model is needed, and nothing is played.
    """
    from tau2rl.verify.verifiers import scorers

    plugins.search([Path.cwd()])
    counts = evaluated(run)
    attempts = sampled(run)
    if {key: len(part) for key, part in attempts.items()} != {key: n for key, (n, _) in counts.items()}:
        raise UserError(f"`{run}` has other episodes than its report counts", hint="play it again")
    fewest = min(map(len, attempts.values()))
    chosen = k or fewest
    transcripts = _transcripts(attempts)
    found = {scorer.name: _worth(scorer, attempts, transcripts, chosen, accept_from) for scorer in scorers(verifier or SHIPPED)}
    adjusted = holm([one["gain"]["p"] for one in found.values()])
    for one, p in zip(found.values(), adjusted, strict=True):
        one["gain"]["p_holm"] = p
    values = {"run": str(run), "tasks": len(attempts), "attempts": fewest, "k": chosen, "accept_from": accept_from}
    if as_json:
        console.emit_json({**values, "verifiers": found})
    else:
        _print(found, chosen, tasks=len(attempts), attempts=fewest)


def _worth(
    scorer: Scorer, attempts: Mapping[str, list[EpisodeRecord]], transcripts: Mapping[str, Any], k: int, accept_from: float
) -> dict[str, Any]:
    """What a verifier is worth on the attempts of a run, JSON-ready."""
    tasks = _scored(scorer, attempts, transcripts)
    stop = None if scorer.together else accept_from
    fewest = min(map(len, attempts.values()))
    points = {n: best_of_k.point(tasks, n, accept_from=stop) for n in sorted({*range(1, min(fewest, 16) + 1), k})}
    gain = best_of_k.gain(tasks, k)
    domains = {name: [tasks[key] for key in part] for name, part in by_domain(tasks).items()}
    accepts = {name: best_of_k.accepts(part, accept_from) for name, part in {**domains, "overall": list(tasks.values())}.items()}
    return {
        "pass@1": points[1].passed.to_json(),
        "selected@k": points[k].selected.to_json(),
        "pass@k": points[k].passed.to_json(),
        "gain": {**asdict(gain), "difference": gain.difference.to_json()},
        "expected_attempts": points[k].attempts,
        "accepts": {
            name: {**asdict(one), "precision": one.precision, "recall": one.recall, "false_accepts": one.false_accepts}
            for name, one in accepts.items()
        },
        "curve": [
            {"k": one.k, "selected": one.selected.to_json(), "passed": one.passed.to_json(), "attempts": one.attempts}
            for one in points.values()
        ],
    }


def _transcripts(attempts: Mapping[str, list[EpisodeRecord]]) -> dict[str, list[Any]]:
    from tau2rl.verify.verifiers import transcript_of

    return {key: [transcript_of(record.episode) for record in part] for key, part in attempts.items()}


def _scored(scorer: Scorer, attempts: Mapping[str, list[EpisodeRecord]], transcripts: Mapping[str, Any]) -> dict[str, Scored]:
    """The attempts of each task with their scores: of all k together, or each by itself and worked out once."""
    solved = {key: tuple(record.episode.solved for record in part) for key, part in attempts.items()}
    if scorer.together:
        return {
            key: Scored(solved=solved[key], scores=lambda played, ts=transcripts[key]: scorer.score([ts[i] for i in played]))
            for key in attempts
        }
    scores = iter(scorer.score([one for key in attempts for one in transcripts[key]]))
    by_task = {key: [next(scores) for _ in transcripts[key]] for key in attempts}
    return {
        key: Scored(solved=solved[key], scores=lambda played, known=by_task[key]: [known[i] for i in played]) for key in attempts
    }


def _print(found: Mapping[str, Any], k: int, *, tasks: int, attempts: int) -> None:
    rows = [["verifier", "pass@1", f"selected@{k} [95%]", f"pass@{k}", "gain over pass@1 [95%]", "p (Holm)", "attempts"]]
    for name, one in found.items():
        stop = number(one["expected_attempts"]) if one["expected_attempts"] is not None else f"{k} (all)"
        rows.append(
            [name, number(one["pass@1"]["value"]), _interval(one["selected@k"]), number(one["pass@k"]["value"]),
             _interval(one["gain"]["difference"], "+"), f"{one['gain']['p_holm']:.4f}", stop]
        )  # fmt: skip
    console.emit_table(rows)
    table = [["verifier", "domain", "successes", "failures", "precision", "recall", "false accepts"]]
    for name, one in found.items():
        domains = one["accepts"] if len(one["accepts"]) > 2 else {"overall": one["accepts"]["overall"]}
        for domain, part in domains.items():
            shares = [number(part[share]) for share in ("precision", "recall", "false_accepts")]
            table.append([name, domain, str(part["successes"]), str(part["failures"]), *shares])
    console.emit_table(table)
    ks = [one["k"] for one in next(iter(found.values()))["curve"]]
    curve = [["selected@k, k =", *map(str, ks)]]
    curve += [[name, *(number(one["selected"]["value"]) for one in worth["curve"])] for name, worth in found.items()]
    curve.append(["an oracle (pass@k)", *(number(one["passed"]["value"]) for one in next(iter(found.values()))["curve"])])
    console.emit_table(curve)
    console.emit(f"{tasks} tasks, {attempts} attempts each; attempts: expected, one after another until one is accepted")
    for name, one in found.items():
        console.emit(f"{name}: {_claim(one)}")


def _claim(one: Mapping[str, Any]) -> str:
    """Whether choosing by it raises success: the interval of the paired gain leaves 0 out, and Holm's p is below .05."""
    ci95 = one["gain"]["difference"]["ci95"]
    if ci95 is None or ci95[0] <= 0 <= ci95[1] or one["gain"]["p_holm"] >= 0.05:
        return "no rise over pass@1 is shown"
    return "the chosen attempt is better than any one" if ci95[0] > 0 else "the chosen attempt is worse than any one"


def _interval(estimate: Mapping[str, Any], sign: str = "") -> str:
    ci95 = estimate["ci95"]
    text = f"{estimate['value']:{sign}.3f}"
    return text if ci95 is None else f"{text} [{ci95[0]:{sign}.3f}, {ci95[1]:{sign}.3f}]"
