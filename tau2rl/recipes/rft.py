"""`tau2rl rft-filter`: rejection sampling. Attempts of a policy, or of earlier runs; what tau2 graded 1 becomes training data."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tau2rl.config import ChatConfig, PolicyConfig, RftConfig
from tau2rl.data.rollout_filter import RolloutFilter
from tau2rl.env.tasks import refuse_held_out
from tau2rl.errors import UserError
from tau2rl.recipes.dataset import SourceRun, make_source, scan, write_dataset
from tau2rl.recipes.play import play, prepare, write_environment
from tau2rl.reward.presets import spec_from
from tau2rl.runs.budget import Meter
from tau2rl.runs.folder import RunFolder, read_config
from tau2rl.runs.progress import Progress
from tau2rl.runs.provenance import environment, read_environment
from tau2rl.runs.reports import Result

ROWS = "sft.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attempts:
    """What is filtered."""

    sources: list[SourceRun]
    digest: str
    planned: int | None = None  # attempts of this run's own sampling
    meter: Meter | None = None  # of it


def run(config: RftConfig, folder: RunFolder, progress: Progress) -> Result:
    """Sample where no sources are given, then filter. Raises UserError for what cannot be run as asked."""
    attempts = _from_runs(config, folder) if config.sources else _sample(config, folder, progress)
    spec = spec_from(config.reward, max_turns=config.limits.max_turns)
    keep = config.keep
    with RolloutFilter() as rollouts:
        form = keep.form if keep.attempts == "solved+form" else ()
        seen = scan(
            attempts.sources,
            rollouts,
            spec=spec,
            seed=config.seed,
            progress=progress,
            form=form,
            exclude_faults=keep.exclude_faults,
        )
        if seen.held_out and not config.allow_held_out:
            raise UserError(
                f"{seen.held_out} episodes of the sources are on tasks that are kept for tests",
                hint="take runs on a training split, or accept them with `allow_held_out=true`",
            )
        rollouts.apply(keep)
        report = write_dataset(
            "rft-filter",
            folder.path,
            ROWS,
            attempts.sources,
            rollouts,
            seen,
            digest=attempts.digest,
            planned=attempts.planned,
            meter=attempts.meter,
        )
    folder.write_report(report)
    return Result(report=report, complete=not report["incomplete"])


def _sample(config: RftConfig, folder: RunFolder, progress: Progress) -> _Attempts:
    """Run the episodes: the run itself is the only source."""
    prepared = prepare(config, progress)
    if not config.allow_held_out:
        refuse_held_out(prepared.tasks)
    digest = write_environment(config, folder, prepared)
    asyncio.run(play(config, folder, prepared, progress))
    source = make_source(folder.path, config.name, config.policy, config.chat, fingerprint=prepared.chat, digest=digest)
    return _Attempts(sources=[source], digest=digest, planned=len(prepared.planned), meter=prepared.meter)


def _from_runs(config: RftConfig, folder: RunFolder) -> _Attempts:
    """The runs that `sources` names, and the digest of what this one stands on."""
    sources = [source_of(path) for path in config.sources]
    refuse_mixture(sources)
    stands_on = environment(config, {}, {"sources": [source.digest for source in sources], "chat": sources[0].fingerprint})
    folder.write_environment(stands_on)
    return _Attempts(sources=sources, digest=str(stands_on["digest"]))


def source_of(path: Path) -> SourceRun:
    """An earlier run as a source. Raises UserError when the folder holds no episodes."""
    path = path.expanduser().absolute()
    config = read_config(path)
    policy, chat = getattr(config, "policy", None), getattr(config, "chat", None)
    if not isinstance(policy, PolicyConfig) or not isinstance(chat, ChatConfig) or not (path / "episodes.jsonl").exists():
        raise UserError(f"`{path}` holds no episodes", hint="name the folder of an eval, seed or rft-filter run")
    stood_on = read_environment(path, config)
    fingerprint = str(stood_on["identity"].get("chat", ""))
    return make_source(path, config.name, policy, chat, fingerprint=fingerprint, digest=str(stood_on["digest"]))


def refuse_mixture(sources: Sequence[SourceRun]) -> None:
    """Raise UserError when the sources do not speak the same protocol: their rows would teach two ways of writing."""
    if len({source.fingerprint for source in sources}) > 1:
        lines = "\n".join(f"  {source.path}: {source.chat.protocol}, {source.fingerprint}" for source in sources)
        raise UserError(
            f"the sources were written in different chat protocols or with different tokenizers\n{lines}",
            hint="filter each by itself; `sft` takes several files",
        )
