"""What `tau2rl synth` leaves in its folder: tasks, splits, proofs, and the data card with what was measured of them."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tau2rl.config import SynthConfig, dump, flatten
from tau2rl.env.task_cells import PROOFS
from tau2rl.report.tables import dollars
from tau2rl.synth.generator import Made, TaskGenerator

WRITTEN = "The model `{model}` has said the templates' lines anew: its terms hold for the words."
NO_MATTER = tuple(
    f"writer.{key}" for key in ("cache", "timeout_seconds", "retries", "concurrency", "api_key_env")
)  # they decide nothing
APART = ("train-learn", "train-select", "test")  # the splits that are disjoint
FILES = ("tasks.json", "split_tasks.json", PROOFS, "card.json", "README.md")


def write_folder(
    folder: Path,
    config: SynthConfig,
    generator: TaskGenerator[Any],
    made: Sequence[Made],
    *,
    rejected: Mapping[str, int],
    identity: Mapping[str, Any],
) -> dict[str, Any]:
    """Write `tasks.json`, `split_tasks.json`, `proofs.jsonl`, `card.json` and `README.md`; the card."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = card_facts(config, generator, made, rejected=rejected, identity=identity)
    _json(folder / "tasks.json", [m.task for m in made])
    _json(folder / "split_tasks.json", splits(made))
    lines = "".join(json.dumps(m.row, ensure_ascii=False) + "\n" for m in made)
    (folder / PROOFS).write_text(lines, encoding="utf-8")
    _json(folder / "card.json", facts)
    (folder / "README.md").write_text(card_text(facts, generator), encoding="utf-8")
    return facts


def splits(made: Sequence[Made]) -> dict[str, list[str]]:
    """Split -> ids, in tau2's layout; no two of `APART` share what the generator keeps apart."""
    of = {name: [m.task["id"] for m in made if m.split == name] for name in APART}
    return {"base": [m.task["id"] for m in made], "train": [m.task["id"] for m in made if m.split != "test"], **of}


def card_facts(
    config: SynthConfig,
    generator: TaskGenerator[Any],
    made: Sequence[Made],
    *,
    rejected: Mapping[str, int],
    identity: Mapping[str, Any],
) -> dict[str, Any]:
    """The numbers of the data card, JSON-ready."""
    behaviours = [m.row["behaviour"] for m in made]
    spent, failures = generator.spent, generator.failures
    made_for = Counter(m.row["made_for"] for m in made) if failures else {}
    return {
        "command": command(config),
        "domain": config.domain,
        "made_from": identity,
        "licence": f"{generator.licence} {WRITTEN.format(model=config.writer.model)}" if spent else generator.licence,
        "tasks": len(made),
        "asked_for": config.num_tasks * config.behaviours,
        "splits": {name: len(ids) for name, ids in splits(made).items()},
        "customers": sorted_counts(Counter(Counter(m.user_id for m in made).values())),
        "asks_something": sum(m.row["question"] is not None for m in made),
        "behaviours": {key: sorted_counts(Counter(each[key] for each in behaviours)) for key in (behaviours[0] if made else ())},
        **generator.counts(made),
        **({"from_failures": failures.card(made_for)} if failures else {}),
        "thrown_away": sorted_counts(rejected),
        **({"writer": spent} if spent else {}),
    }


def command(config: SynthConfig) -> str:
    """The command that makes the same bytes; settings with their default are left out."""
    values = {
        "writes": ",".join(map(str, config.writes)),
        "burdens": ",".join(config.burdens),
        "problems": ",".join(map(str, config.problems)),
        "intents": ",".join(config.intents),
        "personas": ",".join(config.personas),
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


def card_text(facts: Mapping[str, Any], generator: TaskGenerator[Any]) -> str:
    """The data card as Markdown."""
    made_from = facts["made_from"]
    grid = "\n".join(f"| {name} | {' | '.join(map(str, row.values()))} |" for name, row in facts["grid"].items())
    data = ", ".join(f"{key} `{value}`" for key, value in made_from["data"].items())
    return f"""# {facts["tasks"]} made tasks of {facts["domain"]}

    {facts["command"]}

Made from {made_from["tau2"]["distribution"]} {made_from["tau2"]["version"]}; hashes of its data: {data}.
Hash of what makes the tasks: `{made_from["synth"]}`.
The same command on the same data gives the same bytes. {facts["licence"]}

`tasks.json` has the tasks in tau2's layout, `split_tasks.json` their splits, `proofs.jsonl` a proof a task, `card.json` these
numbers. Play them with `--domains {facts["domain"]} --task-source tasks.json`.

## The grid

| {" | ".join(facts["grid_head"])} |
|{" --- |" * len(facts["grid_head"])}
{grid}

Splits, no two of which share {generator.apart}: {counts_in_words({name: facts["splits"][name] for name in APART})}.
`train` is the first two of them, `base` all.
Behaviours: {"; ".join(f"{key}: {counts_in_words(counts)}" for key, counts in facts["behaviours"].items())}.
Thrown away: {counts_in_words(facts["thrown_away"]) or "nothing"}.
{_writer(facts)}
{generator.in_words(facts)}{_from_failures(facts)}"""


def _writer(facts: Mapping[str, Any]) -> str:
    """What the model that wrote the texts took, where there was one."""
    spent = facts.get("writer")
    if spent is None:
        return ""
    return f"""
Texts were said anew by a model: {spent["texts"]} of them in {spent["calls"]} calls and {spent["from_cache"]} kept answers, for
{spent["prompt_tokens"]} and {spent["completion_tokens"]} tokens, {dollars(spent["cost_usd"])}; {spent["rewritten"]} were asked
for again ({counts_in_words(spent["faults"]) or "no faults"}). Each was read back: its facts are the ones that were put in.
"""


def _from_failures(facts: Mapping[str, Any]) -> str:
    """Which failures the tasks were made from, where they were."""
    found = facts.get("from_failures")
    if found is None:
        return ""
    rows = "\n".join(
        f"| {c['name']} | {c['about'] or '-'} | {c['argument'] or '-'} | {len(c['failures'])} | {c['tasks']} |"
        for c in found["clusters"]
    )
    runs = ", ".join(f"`{run['run']}` (episodes `{run['episodes_sha256'][:16]}`)" for run in found["runs"])
    return f"""
## The failures that they were made from

{found["failures"]} of {found["attempts"]} attempts failed by the agent's own fault in {runs}.
A task made for a cluster has its problem, a call of its tool among its writes, or a request that its rule forbids; `made_for`
in `proofs.jsonl` names its cluster, `card.json` the attempts. Left out: {counts_in_words(found["left_out"]) or "nothing"}.

| what went wrong | problem, tool or rule | argument | failures | tasks |
| --- | --- | --- | --- | --- |
{rows}
"""


def counts_in_words(counts: Mapping[str, int]) -> str:
    """Counts in a row: `train 8, test 2`."""
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def sorted_counts(found: Mapping[Any, int]) -> dict[str, int]:
    """Counts in the order of what is counted, JSON-ready."""
    return {str(key): found[key] for key in sorted(found)}


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
