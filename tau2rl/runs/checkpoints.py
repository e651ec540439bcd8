"""Where a training keeps its models: below `checkpoints/`, in Hugging Face's layout, by the number of steps behind them.

`step_00020` is the local trainer's; `hf/19` is slime's, which counts rollouts from 0; `final` is the last of either, `selected` a
link to the one that `tau2rl select-checkpoint` chose; `initial` is what a tiny model started from; `state` (local) and `megatron`
(slime) are what an interrupted training goes on from. Pruning removes those of finished trainings that no other run and no choice
names.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tau2rl.config import EvalConfig, GrpoConfig, SftConfig
from tau2rl.errors import UserError
from tau2rl.report.published import Published, card_named, card_of
from tau2rl.runs.files import json_lines, read_json, writing
from tau2rl.runs.folder import RunFolder, read_config
from tau2rl.runs.provenance import ENVIRONMENT
from tau2rl.runs.reports import REPORT, SELECTION, read_report, read_selection
from tau2rl.runs.sessions import RunLock

log = logging.getLogger(__name__)
INITIAL, FINAL, SELECTED, STATE, MEGATRON = "initial", "final", "selected", "state", "megatron"
# Values of these keys that name a repository (`owner/name`) are kernels that transformers fetches and runs.
KERNEL_KEYS = frozenset(
    f"{ahead}{what}_implementation{behind}" for ahead in ("", "_") for what in ("attn", "experts") for behind in ("", "_internal")
)


def begins_anew(folder: RunFolder, *, save_every: int) -> None:
    """To be called where a training finds no state to go on from. Says what is lost with steps that none was saved behind.

    Raises UserError where one was: what was learned is gone, and beginning again in silence would hide it.
    """
    steps = [values.get("step") for _, values in json_lines(folder.metrics)] if folder.metrics.exists() else []
    last = max((step for step in steps if isinstance(step, int)), default=0)
    if not last:
        return
    # The step's numbers are written first, and `train.save_every` may change from one session to the next.
    if last > max(save_every, *_earlier(folder.path, "train.save_every")) or (folder.checkpoints / FINAL).exists():
        raise UserError(
            f"`{folder.checkpoints}` has no training state, and the run was at step {last}",
            hint="put it back, start a new run from a checkpoint (`--model`), or remove "
            f"`{folder.metrics}` and `{folder.checkpoints}` to begin again at step 0",
        )
    log.warning("no state was saved before the run ended at step %d (train.save_every): it begins again at step 0", last)


def _earlier(run: Path, setting: str) -> list[int]:
    """The values that a setting had in earlier sessions, and 0."""
    file = run / ENVIRONMENT
    changes: Any = read_json(file).get("changes") if file.exists() else None
    listed = [cast("dict[str, Any]", one) for one in cast("list[Any]", changes or []) if isinstance(one, dict)]
    return [0, *(one["from"] for one in listed if one.get("setting") == setting and isinstance(one.get("from"), int))]


def exports(step: int, every: int) -> bool:
    """Whether a step leaves a whole checkpoint.

    >>> [step for step in range(1, 7) if exports(step, 3)], exports(1, 0)
    ([3, 6], False)
    """
    return bool(every) and step % every == 0


def named_step(checkpoint: Path) -> int | None:
    """The step that a folder's name says.

    >>> named_step(Path("step_00020")), named_step(Path("hf/19")), named_step(Path("final"))
    (20, 20, None)
    """
    if named := re.fullmatch(r"step_(\d+)", checkpoint.name):
        return int(named[1])
    return int(checkpoint.name) + 1 if checkpoint.parent.name == "hf" and checkpoint.name.isdigit() else None


def step_of(checkpoint: Path, run: Path) -> int:
    """How many steps a checkpoint of a run has behind it, by its name or that of what it links to. Raises UserError."""
    checkpoint = checkpoint.resolve() if checkpoint.is_symlink() else checkpoint
    if (step := named_step(checkpoint)) is not None:
        return step
    if checkpoint.name == FINAL:
        return last_step(run)
    raise UserError(f"the name of `{checkpoint}` does not say its step", hint="`step_00020`, `hf/19` or `final`")


def last_step(run: Path) -> int:
    """The step of `final`: what the report says, because a training can stop early or be extended; else what was asked for."""
    config = read_config(run)
    if not isinstance(config, (GrpoConfig, SftConfig)):
        raise UserError(f"`{run}` is no training", hint="name the folder of an sft or grpo run")
    if (run / REPORT).is_file():
        training = read_report(run / REPORT).get("training", {})
        done = training.get("final_step") or training.get("steps")  # the first where an earlier step than the last is handed on
        return int(done) if done else config.train.steps
    return config.train.steps


def training_run(checkpoint: Path) -> Path | None:
    """The run folder in whose `checkpoints/` a checkpoint lies.

    >>> training_run(Path("/out/grpo/a/checkpoints/hf/19")).as_posix(), training_run(Path("/models/b"))
    ('/out/grpo/a', None)
    """
    return next((parent.parent for parent in checkpoint.absolute().parents if parent.name == "checkpoints"), None)


def refuse_code(checkpoint: Path, *, trusting: bool) -> None:
    """Raises UserError for a checkpoint that would have a library run code that came with it, or that it names.

    `trusting`: by a library that is told `trust_remote_code=True`, as slime and its SGLang are; transformers then takes classes
    from the `auto_map` of any of its JSON files, and `generate` from `custom_generate/`. Kernels of a hub need no such word.
    """
    for file in sorted(checkpoint.expanduser().glob("*.json")):
        try:
            values: Any = json.loads(file.read_text("utf-8"))
        except (OSError, ValueError, RecursionError):  # its reader's to say
            continue
        for key, value in _items(values):
            if trusting and key == "auto_map" and value:
                raise _brings_code(f"`auto_map` in `{file}`", "take `auto_map` out")
            if key in KERNEL_KEYS and "/" in json.dumps(value):
                raise _brings_code(f"`{key}` in `{file}`", f"take `{key}` out: the library then chooses one of its own")
    if trusting and (code := checkpoint.expanduser() / "custom_generate").exists():
        raise _brings_code(f"`{code}`", "take the folder out: nothing here calls `generate`")


def _brings_code(where: str, hint: str) -> UserError:
    return UserError(f"the checkpoint brings code of its own, which would be run: {where}", hint=hint)


def _items(values: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, at any depth of JSON values."""
    waiting = [values]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from cast("dict[str, Any]", value).items()
            waiting += cast("dict[str, Any]", value).values()
        elif isinstance(value, list):
            waiting += cast("list[Any]", value)


def card_for(config: EvalConfig, agent: str) -> Published | None:
    """The published card that an evaluation is set beside: `card`, else that of the checkpoint's own name. `agent`: who played.

    Never one for a checkpoint that was trained here. Raises UserError for a `card` that nobody knows, or that is of such a one.
    """
    policy = config.policy
    served = agent.partition(", ")[0] if policy.kind == "sglang" else ""  # what the server says of its model
    places = [str(place) for place in (policy.checkpoint if policy.kind == "local" else None, served or None) if place]
    trained = next((place for place in places if training_run(Path(place)) is not None), None)
    if trained is not None:
        if config.card is None:
            return None
        message = f"card `{config.card}`: `{trained}` was trained, and a card is of a model before training"
        raise UserError(message, hint="leave out `--card`; `tau2rl compare` sets it against its base model")
    if config.card is not None:
        return card_named(config.card)
    return card_of([*places, *([policy.model] if policy.kind == "api" and policy.model else [])])


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One on the disk, or what a training goes on from: `Checkpoint(path=..., size=9_000_000_000, kept_because="")`."""

    run: Path
    path: Path
    size: int  # bytes on the disk, links not followed
    kept_because: str  # "" for what may go


def plan_pruning(runs: Sequence[Path], *, keep_last: int, state: bool) -> list[Checkpoint]:
    """Everything below `checkpoints/` of the runs, each with the reason why it stays.

    `keep_last` more steps of each training stay, the latest ones. With `state` a finished training may lose what it would be
    extended from. A training without a whole report keeps everything.
    """
    named = tuple({name for run in runs for name in _named(run)})
    return [found for run in runs for found in _of_run(run, named, keep_last, state=state)]


def remove(found: Sequence[Checkpoint]) -> None:
    """Delete what may go. Raises UserError for a run that a process has open, before anything of that run is deleted."""
    for run in dict.fromkeys(one.run for one in found if not one.kept_because):
        lock = RunLock(run / "logs" / "lock", patience_seconds=0)
        try:
            for one in found:
                if one.run == run and not one.kept_because:
                    with writing(one.path):
                        shutil.rmtree(one.path)
        finally:
            lock.close()


def disk_size(path: Path) -> int:
    """Bytes of the files at and below a path; links are not followed, what vanishes meanwhile counts nothing."""
    if path.is_symlink():
        return 0
    if path.is_dir():
        return sum(disk_size(item) for item in path.iterdir())
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _of_run(run: Path, named: tuple[str, ...], keep_last: int, *, state: bool) -> Iterator[Checkpoint]:
    models = run / "checkpoints"
    if not models.is_dir() or models.is_symlink():
        return
    finished = _finished(run)
    linked = {item.resolve() for item in (models / FINAL, models / SELECTED) if item.is_symlink()}
    steps = {item: step for item in (*models.iterdir(), *(models / "hf").glob("*")) if (step := _step(item)) is not None}
    last = sorted(steps, key=steps.__getitem__)[len(steps) - keep_last :] if keep_last else []

    def because(item: Path) -> str:
        if not finished:
            return "its training is not finished"
        if item in steps:
            if item.resolve() in linked:
                return "it is the final or the chosen one"
            if f"/{item.resolve().as_posix()}".endswith(named):
                return "a run or a choice names it"
            return "it is of the last ones" if item in last else ""
        if item.name in (STATE, MEGATRON):
            return "" if state else "the training may be extended from it"
        return {INITIAL: "it is the model before training", FINAL: "it is the final one"}.get(
            item.name, "it is not of a training"
        )

    for item in sorted((*(item for item in models.iterdir() if item.name != "hf"), *(models / "hf").glob("*"))):
        if not item.is_symlink() and item.is_dir():
            yield Checkpoint(run=run, path=item, size=disk_size(item), kept_because=because(item))


def _step(item: Path) -> int | None:
    if item.is_symlink() or not item.is_dir():
        return None
    return named_step(item)


def _finished(run: Path) -> bool:
    try:
        return (run / REPORT).is_file() and not read_report(run / REPORT)["incomplete"]
    except UserError:
        return False


def _named(run: Path) -> Iterator[str]:
    """The ends of all paths that the settings of a run name below `checkpoints/`, and of the one that its choice names.

    Relative ones are of a directory that nobody knows any more: whatever ends like them is named.
    """
    chosen = [str(read_selection(run / SELECTION)["chosen"].get("path", ""))] if (run / SELECTION).is_file() else []
    for text in (*_texts(read_json(run / "config.json")), *chosen):
        path = Path(text).expanduser()
        if "checkpoints" in path.parts:
            yield f"/{(path.resolve() if path.is_absolute() or path.exists() else path).as_posix()}"


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, Mapping):
        value = list(cast("Mapping[str, Any]", value).values())
    if isinstance(value, list):
        return (text for part in cast("list[Any]", value) for text in _texts(part))
    return (value,) if isinstance(value, str) else ()
