"""`tau2rl select`: what best of k is worth without an oracle, on the attempts that a run has kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tau2rl import console, plugins
from tau2rl.cli.judge_options import JudgeApiBase, JudgeKey, JudgeModel, Judgments, asked_model, spent_words
from tau2rl.cli.options import Json, option
from tau2rl.cli.results import evaluated, sampled
from tau2rl.errors import UserError
from tau2rl.report import best_of_k
from tau2rl.report.aggregate import by_domain
from tau2rl.report.best_of_k import Scored
from tau2rl.report.compare import holm
from tau2rl.report.tables import number
from tau2rl.runs.provenance import file_hash
from tau2rl.types import EpisodeRecord

if TYPE_CHECKING:
    from tau2rl.verify.verifiers import Scorer

SHIPPED = ("rules", "consistency", "logprob")
VerifierNames = Annotated[
    list[str] | None,
    option(
        help="rules, consistency, logprob, judge, a file of `--fit`, or yours as `package.module:name`; may be repeated. "
        "(default: the first three)",
        metavar="NAME",
        panel=None,
    ),
]
Fit = Annotated[
    Path | None,
    option(
        help="Fit a logistic regression on the scores of the verifiers, on a run of training tasks, and write it here.",
        metavar="FILE",
        panel=None,
    ),
]


def select(
    run: Annotated[Path, typer.Argument(help="A finished evaluation.", metavar="RUN_DIR", show_default=False)],
    k: Annotated[int | None, typer.Option("-k", "--k", min=1, help="Attempts to choose from. (default: all)")] = None,
    verifier: VerifierNames = None,
    accept_from: Annotated[
        float, typer.Option(min=0, max=1, help="The score from which an attempt is accepted, and early stop ends.")
    ] = 0.5,
    fit: Fit = None,
    judge_model: JudgeModel = None,
    judge_api_base: JudgeApiBase = None,
    judge_api_key_env: JudgeKey = None,
    judgments: Judgments = None,
    allow_held_out: Annotated[bool, typer.Option("--allow-held-out", help="Fit on test and selection tasks too.")] = False,
    as_json: Json = False,
) -> None:
    """Choose one of k kept attempts at each task by a verifier, and say what that is worth: pass@1 < selected@k < pass@k.

    A verifier sees what a deployment would: policy, messages, calls and results; never the task's criteria or its grade.
    Nothing is played. Only `judge` asks a model, `--judge-model`, through litellm; its answers are kept and not asked for twice.
    `--fit FILE` makes a verifier of several: fit it on one run, then measure it on another with `--verifier FILE`.
    """
    from tau2rl.verify.verifiers import scorers

    model = asked_model(judge_model, judge_api_base, judge_api_key_env, judgments)
    plugins.search([Path.cwd()])
    verifiers = scorers(verifier or SHIPPED, model=model)
    if fit is not None:
        _fit(fit, run, verifiers, allow_held_out=allow_held_out, as_json=as_json)
        return
    counts = evaluated(run)
    attempts = sampled(run)
    if {key: len(part) for key, part in attempts.items()} != {key: n for key, (n, _) in counts.items()}:
        raise UserError(f"`{run}` has other episodes than its report counts", hint="play it again")
    fewest = min(map(len, attempts.values()))
    chosen = k or fewest
    for one in verifiers:
        if both := one.fitted_on & attempts.keys():
            raise UserError(
                f"`{one.name}` was fitted on {len(both)} tasks of `{run}`, such as {min(both)}", hint="measure it on other tasks"
            )
    transcripts = _transcripts(attempts)
    found = {scorer.name: _worth(scorer, attempts, transcripts, chosen, accept_from) for scorer in verifiers}
    adjusted = holm([one["gain"]["p"] for one in found.values()])
    for one, p in zip(found.values(), adjusted, strict=True):
        one["gain"]["p_holm"] = p
    values: dict[str, Any] = {
        "run": str(run),
        "tasks": len(attempts),
        "attempts": fewest,
        "k": chosen,
        "accept_from": accept_from,
    }
    if model is not None:
        values["judge"] = model.spent()
    if as_json:
        console.emit_json({**values, "verifiers": found})
    else:
        _print(found, chosen, tasks=len(attempts), attempts=fewest)
        if model is not None:
            console.emit(spent_words(model))


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


def _fit(file: Path, run: Path, verifiers: Sequence[Scorer], *, allow_held_out: bool, as_json: bool) -> None:
    """Fit a verifier on the scores of others, over the attempts of a run, and write it. Raises UserError."""
    from tau2rl.env.tasks import refuse_held_out
    from tau2rl.verify import learned
    from tau2rl.verify.verifiers import signals

    attempts = sampled(run)
    if not attempts:
        raise UserError(f"`{run}` has no episodes")
    if not allow_held_out:
        refuse_held_out({record.attempt.task for part in attempts.values() for record in part})
    transcripts = _transcripts(attempts)
    rows = [row for key in attempts for row in signals(verifiers, transcripts[key])]
    solved = [record.episode.solved for part in attempts.values() for record in part]
    about = {
        "run": str(run),
        "episodes_sha256": file_hash(run / "episodes.jsonl"),
        "tasks": sorted(attempts),
        "attempts": len(solved),
        "successes": sum(solved),
    }
    content = learned.fit([one.name for one in verifiers], rows, solved, about)
    digest = learned.write_learned(file, content)
    if as_json:
        console.emit_json({**content, "digest": digest})
        return
    weights = zip(content["features"], content["coefficients"], strict=True)
    console.emit_table([["feature", "weight"], *([name, f"{weight:+.2f}"] for name, weight in weights if weight)])
    console.emit(f"{file}: verifier {digest}, fitted on {len(solved)} attempts at {len(attempts)} tasks, {sum(solved)} solved")
    console.emit(f"measure it on other tasks: `tau2rl select RUN_DIR --verifier {file}`")


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
