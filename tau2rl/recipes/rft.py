"""`tau2rl rft-filter`: rejection sampling. Attempts of a policy, or of earlier runs; what tau2 graded 1 becomes training data."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from tau2rl.config import ChatConfig, PolicyConfig, RftConfig
from tau2rl.data.rollout_filter import Ledger
from tau2rl.env.tasks import refuse_held_out
from tau2rl.errors import UserError
from tau2rl.recipes.dataset import Source, make_source, missing, scan, summary, write
from tau2rl.recipes.play import play, prepare, write_environment
from tau2rl.report.cost import account
from tau2rl.reward.presets import spec_from
from tau2rl.runs.files import read_json
from tau2rl.runs.folder import Result, RunFolder, read_config
from tau2rl.runs.progress import Progress
from tau2rl.runs.provenance import environment
from tau2rl.runs.timing import starts

ROWS = "sft.jsonl"


def run(config: RftConfig, folder: RunFolder, progress: Progress) -> Result:
    """Sample where no sources are given, then filter. Raises UserError for what cannot be run as asked."""
    planned = None
    if config.sources:
        sources = [source_of(path) for path in config.sources]
        refuse_mixture(sources)
        stands_on = environment(config, {}, {"sources": [source.digest for source in sources], "chat": sources[0].chat})
        folder.write_environment(stands_on)
        digest = str(stands_on["digest"])
    else:
        prepared = prepare(config, progress)
        if not config.allow_held_out:
            refuse_held_out(prepared.tasks)
        digest = write_environment(config, folder, prepared)
        asyncio.run(play(config, folder, prepared, progress))
        planned = len(prepared.planned)
        source = make_source(folder.path, config.name, config.policy, config.chat, fingerprint=prepared.chat, digest=digest)
        sources = [source]
    spec = spec_from(config.reward, max_turns=config.limits.max_turns)
    with Ledger() as ledger:
        seen = scan(sources, ledger, spec=spec, seed=config.seed, progress=progress)
        if seen.held_out and not config.allow_held_out:
            raise UserError(
                f"{seen.held_out} episodes of the sources are on tasks that are kept for tests",
                hint="take runs on a training split, or accept them with `allow_held_out=true`",
            )
        ledger.strike(config.keep)
        found = summary(ledger, seen)
        report = {
            "stage": "rft-filter",
            "digest": digest,
            "planned": planned,
            "incomplete": planned is not None and missing(ledger, planned) > 0,
            **found,
            "sources": [
                {"path": str(source.path), "digest": source.digest, "episodes_sha256": sha256}
                for source, sha256 in zip(sources, seen.episodes, strict=True)
            ],
            "files": write(folder.path, ROWS, sources, ledger),
            "cost": account(starts(folder), seen.costs) if config.plays else None,  # those of sources are in their own reports
        }
    folder.write_report(report)
    return Result(report=report, complete=not report["incomplete"])


def source_of(path: Path) -> Source:
    """An earlier run as a source. Raises UserError when the folder holds no episodes."""
    path = path.expanduser().absolute()
    config = read_config(path)
    policy, chat = getattr(config, "policy", None), getattr(config, "chat", None)
    if not isinstance(policy, PolicyConfig) or not isinstance(chat, ChatConfig) or not (path / "episodes.jsonl").exists():
        raise UserError(f"`{path}` holds no episodes", hint="name the folder of an eval, seed or rft-filter run")
    stood_on = read_json(path / "environment.json")
    fingerprint = str(stood_on["identity"].get("chat", ""))
    return make_source(path, config.name, policy, chat, fingerprint=fingerprint, digest=str(stood_on["digest"]))


def refuse_mixture(sources: Sequence[Source]) -> None:
    """Raise UserError when the sources do not speak the same protocol: their rows would teach two ways of writing."""
    if len({source.chat for source in sources}) > 1:
        lines = "\n".join(f"  {source.path}: {source.protocol}, {source.chat}" for source in sources)
        raise UserError(
            f"the sources were written in different chat protocols or with different tokenizers\n{lines}",
            hint="filter each by itself; `sft` takes several files",
        )
