"""What `tau2rl synth` leaves in its folder: tasks, splits, proofs, and the data card with what was measured of them."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tau2rl.config import SynthConfig, dump, flatten
from tau2rl.env.task_cells import PROOFS
from tau2rl.synth.compose import BURDENS, Composed
from tau2rl.synth.failure_clusters import Cluster, Failures
from tau2rl.synth.guard import WORDS, Guard
from tau2rl.synth.proof import SOLVED, Proof
from tau2rl.synth.texts import Text

LICENCE = (
    "The rows of the database and the policy are tau2-bench's (MIT). The texts are made by templates of tau2rl (Apache-2.0)."
)
WRITTEN = "The model `{model}` has said the templates' lines anew: its terms hold for the words."
NO_MATTER = tuple(
    f"writer.{key}" for key in ("cache", "timeout_seconds", "retries", "concurrency", "api_key_env")
)  # they decide nothing
FILES = ("tasks.json", "split_tasks.json", PROOFS, "card.json", "README.md")


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """One proved task with all that it was made of."""

    composed: Composed
    text: Text
    task: dict[str, Any]  # tau2's Task as JSON values
    proof: Proof
    split: str  # "train-learn", "train-select" or "test"
    cluster: Cluster | None = None  # of failures, which it was made for
    told_anew: bool = False  # with the calls of the task before it, by another user


def write_folder(
    folder: Path,
    config: SynthConfig,
    made: Sequence[Made],
    *,
    rejected: Mapping[str, int],
    guard: Guard,
    identity: Mapping[str, Any],
    spent: Mapping[str, Any] | None = None,
    failures: Failures | None = None,
) -> dict[str, Any]:
    """Write `tasks.json`, `split_tasks.json`, `proofs.jsonl`, `card.json` and `README.md`; the card."""
    folder.mkdir(parents=True, exist_ok=True)
    proofs = [
        {**m.proof.row(m.task["id"], m.composed, m.text.behaviour), **({"made_for": m.cluster.key} if m.cluster else {})}
        for m in made
    ]
    facts = card(config, made, proofs, rejected=rejected, guard=guard, identity=identity)
    if spent is not None:
        facts |= {"licence": f"{facts['licence']} {WRITTEN.format(model=config.writer.model)}", "writer": spent}
    if failures is not None:
        facts["from_failures"] = failures.card(Counter(m.cluster.key for m in made if m.cluster))
    _json(folder / "tasks.json", [m.task for m in made])
    _json(folder / "split_tasks.json", splits(made))
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in proofs)
    (folder / PROOFS).write_text(lines, encoding="utf-8")
    _json(folder / "card.json", facts)
    (folder / "README.md").write_text(in_words(facts), encoding="utf-8")
    return facts


def splits(made: Sequence[Made]) -> dict[str, list[str]]:
    """Split -> ids, in tau2's layout; no two of `train-learn`, `train-select` and `test` share a customer."""
    of = {name: [m.task["id"] for m in made if m.split == name] for name in ("train-learn", "train-select", "test")}
    return {"base": [m.task["id"] for m in made], "train": [m.task["id"] for m in made if m.split != "test"], **of}


def card(
    config: SynthConfig,
    made: Sequence[Made],
    proofs: Sequence[Mapping[str, Any]],
    *,
    rejected: Mapping[str, int],
    guard: Guard,
    identity: Mapping[str, Any],
) -> dict[str, Any]:
    """The numbers of the data card, JSON-ready."""
    overlaps = [overlap for m in made if (overlap := guard.overlap(m.task))]
    perturbed = [write for row in proofs for write in row["perturbed"]]
    return {
        "command": command(config),
        "domain": config.domain,
        "made_from": identity,
        "licence": LICENCE,
        "tasks": len(made),
        "told_anew": sum(m.told_anew for m in made),
        "asked_for": config.num_tasks * config.behaviours,
        "grid": {
            str(writes): {name: sum(m.composed.cell == (writes, name) for m in made) for name in BURDENS}
            for writes in sorted({m.composed.cell[0] for m in made})
        },
        "splits": {name: len(ids) for name, ids in splits(made).items()},
        "customers": _counts(Counter(Counter(m.composed.user_id for m in made).values())),
        "tools": _counts(Counter(call.name for m in made for call in m.composed.writes)),
        "refused_rules": _counts(Counter(r.breaks for m in made for r in m.composed.requests if r.breaks)),
        "asks_something": sum(m.composed.question is not None for m in made),
        "behaviours": {
            key: _counts(Counter(m.text.behaviour[key] for m in made)) for key in ("pace", "style", "twist", "identity")
        },
        "proofs": {
            "reference_path_rewarded_1": sum(row["rewards"]["gold"] >= SOLVED for row in proofs),
            "solved_by_do_nothing": sum(row["rewards"]["do_nothing"] >= SOLVED for row in proofs),
            "solved_by_always_transfer": sum(row["rewards"]["always_transfer"] >= SOLVED for row in proofs),
            "writes": len(perturbed),
            "altered_arguments": sum(len(write["altered"]) for write in perturbed),
            "doubled": _counts(Counter(write["doubled"] for write in perturbed)),
            "orders_tried": sum(sum(row["orders"].values()) for row in proofs),
        },
        "thrown_away": _counts(rejected),
        "contamination": {
            "test_tasks": len(guard.tests),
            "customers_of_test_tasks": len(guard.users),
            "table": guard.domain.table,
            "entities_of_test_tasks": len(guard.entities),
            "run_of_words": WORDS,
            "shared": guard.domain.shared,
            "tasks_that_share_something": len(overlaps),
        },
    }


def command(config: SynthConfig) -> str:
    """The command that makes the same bytes; settings with their default are left out."""
    values = {
        "writes": ",".join(map(str, config.writes)),
        "burdens": ",".join(config.burdens),
        "refusals": config.refusals,
        "per_user": config.per_user,
        "behaviours": config.behaviours,
        "twists": ",".join(config.twists),
        "from_failures": ",".join(map(str, config.from_failures)),
        **{name: value for name, value in flatten({"writer": dump(config.writer)}).items() if name not in NO_MATTER},
    }
    given, default = flatten(dump(config)), flatten(dump(SynthConfig()))
    changed = [f"--{n.replace('_', '-')} {shlex.quote(str(v))}" for n, v in values.items() if given[n] != default[n]]
    named = [f"--domain {config.domain}", f"--num-tasks {config.num_tasks}", f"--seed {config.seed}"]
    return f"tau2rl synth {' '.join([*named, *changed])} --output FOLDER"


def in_words(facts: Mapping[str, Any]) -> str:
    """The data card as Markdown."""
    proofs, guard, made_from = facts["proofs"], facts["contamination"], facts["made_from"]
    head = " | ".join(("writes", *(f"{name} reads" for name in BURDENS)))
    grid = "\n".join(f"| {writes} | {' | '.join(map(str, row.values()))} |" for writes, row in facts["grid"].items())
    data = ", ".join(f"{key} `{value}`" for key, value in made_from["data"].items())
    return f"""# {facts["tasks"]} made tasks of {facts["domain"]}

    {facts["command"]}

Made from {made_from["tau2"]["distribution"]} {made_from["tau2"]["version"]}; hashes of its data: {data}.
Hash of what makes the tasks: `{made_from["synth"]}`.
The same command on the same data gives the same bytes. {facts["licence"]}

`tasks.json` has the tasks in tau2's layout, `split_tasks.json` their splits, `proofs.jsonl` a proof a task, `card.json` these
numbers. Play them with `--domains {facts["domain"]} --task-source tasks.json`.

## The grid

Writes are calls that change the database; reads are the least calls after which every argument of a write, and the answer to the
customer's question, is known (authentication is not counted). Tasks without writes ask for what the policy forbids.

| {head} |
|{" --- |" * (len(BURDENS) + 1)}
{grid}

Splits, which share no customer: {_listed(facts["splits"])}.
Tools: {_listed(facts["tools"])}. Rules to refuse by: {_listed(facts["refused_rules"])}.
{facts["asks_something"]} tasks ask for an amount that must be said.
{_ways(facts)}Behaviours: {"; ".join(f"{key}: {_listed(counts)}" for key, counts in facts["behaviours"].items())}.

## Proofs

tau2's grader gave the reference path 1 on {proofs["reference_path_rewarded_1"]} of {facts["tasks"]} tasks. Doing nothing solves
{proofs["solved_by_do_nothing"]}, always transferring {proofs["solved_by_always_transfer"]}.
{proofs["writes"]} writes were left out, doubled ({_listed(proofs["doubled"])})
and altered in {proofs["altered_arguments"]} arguments; {proofs["orders_tried"]} orders were tried.
Thrown away: {_listed(facts["thrown_away"]) or "nothing"}.
{_writer(facts)}{_failures(facts)}

## Overlap with the test tasks

{guard["tasks_that_share_something"]} tasks share a customer, one of the {guard["table"]}, a gold call with its arguments, or
a run of {guard["run_of_words"]} words with one of the {guard["test_tasks"]} test tasks, whose
{guard["customers_of_test_tasks"]} customers and {guard["entities_of_test_tasks"]} {guard["table"]} are left out.
{guard["shared"]}
"""


def _writer(facts: Mapping[str, Any]) -> str:
    """What the model that wrote the texts took, where there was one."""
    spent = facts.get("writer")
    if spent is None:
        return ""
    return f"""
Texts were said anew by a model: {spent["texts"]} of them in {spent["calls"]} calls and {spent["from_cache"]} kept answers, for
{spent["prompt_tokens"]} and {spent["completion_tokens"]} tokens, ${spent["cost_usd"]:.4f}; {spent["rewritten"]} were asked for
again ({_listed(spent["faults"]) or "no faults"}). Each was read back: its facts are the ones that were put in.
"""


def _ways(facts: Mapping[str, Any]) -> str:
    told = facts["told_anew"]
    return f"{told} tasks have the calls of another one, whose user behaves in another way: `ID-1`, ...\n" if told else ""


def _failures(facts: Mapping[str, Any]) -> str:
    """Which failures the tasks were made from, where they were."""
    found = facts.get("from_failures")
    if found is None:
        return ""
    rows = "\n".join(
        f"| {c['name']} | {c['rule'] or c['tool'] or '-'} | {c['argument'] or '-'} | {len(c['failures'])} | {c['tasks']} |"
        for c in found["clusters"]
    )
    runs = ", ".join(f"`{run['run']}` (episodes `{run['episodes_sha256'][:16]}`)" for run in found["runs"])
    return f"""
## The failures that they were made from

{found["failures"]} of {found["attempts"]} attempts failed by the agent's own fault in {runs}.
A task made for a cluster has a call of its tool among its writes, or a request that its rule forbids; `made_for` in
`proofs.jsonl` names its cluster, `card.json` the attempts. Left out: {_listed(found["left_out"]) or "nothing"}.

| what went wrong | tool or rule | argument | failures | tasks |
| --- | --- | --- | --- | --- |
{rows}
"""


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _counts(found: Mapping[Any, int]) -> dict[str, int]:
    return {str(key): found[key] for key in sorted(found)}


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
