"""What the settings of a run name, looked for in the command itself: what is not there is said before a head is started.

`submit.py`, `--dry-run` and `tau2rl doctor -c FILE` make the same checks, each a question of seconds at most. What only a run
can find out (servers that do not answer, rows that cannot be read, a device) is found by the run.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tau2rl import plugins, settings
from tau2rl.chat.tokenizers import HUB_NAME
from tau2rl.config import AgentConfig, EvalConfig, GrpoConfig, PlayConfig, RftConfig, SftConfig, StageConfig
from tau2rl.config.extras import importable, refuse_lacking
from tau2rl.config.stages import LearnConfig
from tau2rl.doctor import services
from tau2rl.errors import UserError, all_of
from tau2rl.recipes.pipeline_plan import Planned
from tau2rl.recipes.pipeline_report import finished
from tau2rl.runs.budget import budget_of, estimate_from
from tau2rl.runs.checkpoints import card_for
from tau2rl.runs.files import read_json
from tau2rl.runs.prices import refuse_unpriced

Find = Callable[[], str]  # what was found, for people; raises UserError


@dataclass(frozen=True, slots=True)
class Need:
    """Something that the settings name: `Need("checkpoint", find)`."""

    name: str
    find: Find


def refuse(configs: Iterable[StageConfig], *, made: Path | None = None, elsewhere: Callable[[StageConfig], bool]) -> None:
    """Raise UserError with everything that runs need and that is not there; `made`: a folder in which earlier ones leave it.

    `elsewhere`: of runs that are carried out on other machines only what is no matter of a machine is looked at.
    """
    errors: list[UserError] = []
    for config in configs:
        if not (there := elsewhere(config)):
            refuse_lacking(config)  # without a package, what needs it cannot be looked for
        for need in needs_of_settings(config) if there else needs(config, made=made):
            try:
                need.find()
            except UserError as error:
                errors.append(error)
    if errors:
        raise all_of(errors)


def not_here(configs: Iterable[StageConfig], *, made: Path | None = None) -> list[str]:
    """The paths that runs on other machines name and this one has not, each with its setting; `made`: as for `refuse`."""
    named = [(name, path) for config in configs for name, path in _paths(config)]
    absent = [(name, path) for name, path in named if not path.expanduser().exists()]
    return list(dict.fromkeys(f"`{path}` ({name})" for name, path in absent if not _is_made(path, made)))


def _paths(config: StageConfig) -> Iterator[tuple[str, Path]]:
    """(setting, path) of what a run reads on the machine that carries it out."""
    if isinstance(config, SftConfig):
        yield from (("data.files", file) for file in config.data.files)
    if isinstance(config, RftConfig):
        yield from (("sources", source) for source in config.sources)
    if (checkpoint := _checkpoint(config)) is not None:
        yield "policy.checkpoint" if isinstance(config, AgentConfig) else "model.init", checkpoint
    if isinstance(config, PlayConfig):
        tokenizer = config.chat.tokenizer or "bytes"
        found = {
            "chat.tokenizer": None if tokenizer == "bytes" or HUB_NAME.fullmatch(tokenizer) else Path(tokenizer),
            "chat.cookbook_prompt": config.chat.cookbook_prompt,
            "tasks.source": config.tasks.source,
            "reward.recipe": config.reward.recipe,
        }
        if isinstance(config, GrpoConfig):
            found |= {"val.source": config.val.source, "algo.curriculum.profile": config.algo.curriculum.profile}
        yield from ((name, path) for name, path in found.items() if path is not None)
    if isinstance(config, SftConfig | GrpoConfig) and config.backend == "slime":
        yield from (("slime.root", config.slime.root), ("slime.megatron", config.slime.megatron))
        if isinstance(config, GrpoConfig) and config.serves_user and config.slime.user.checkpoint is not None:
            yield "slime.user.checkpoint", config.slime.user.checkpoint


def _is_made(path: Path | str, made: Path | None) -> bool:
    """Whether an earlier run of a pipeline leaves it in this folder."""
    return made is not None and Path(path).expanduser().absolute().is_relative_to(made)


def refuse_lost(runs: Sequence[Planned]) -> str:
    """Raise UserError where a run of a pipeline needs what a finished step had left and somebody took away; else "there"."""
    done = [planned for planned in runs if finished(planned)]
    errors: list[UserError] = []
    for planned in (each for each in runs if each not in done):
        for file in _taken_in(planned.config):
            step = next((each for each in done if file.is_relative_to(each.folder)), None)
            if step is not None and not file.is_file():
                folders = shlex.join(str(each.folder) for each in _standing_on(step, runs))
                message = f"`{file}` is gone: step `{step.label}` had left it, and `{planned.label}` needs it"
                errors.append(UserError(message, hint=f"bring it back, or have all of it made again: rm -r {folders}"))
    if errors:
        raise all_of(errors)
    return "there"


def _taken_in(config: StageConfig) -> Iterator[Path]:
    """The files that a run reads of what earlier ones may have made."""
    if isinstance(config, SftConfig):
        yield from config.data.files
    if isinstance(config, RftConfig):
        yield from (source / "episodes.jsonl" for source in config.sources)
    checkpoint = _checkpoint(config)
    if checkpoint is not None:
        yield checkpoint / "config.json"
        yield from (checkpoint / name for name in _weights(checkpoint))


def _weights(checkpoint: Path) -> list[str]:
    """The names of a checkpoint's weights: those that its index lists, else the one file."""
    try:
        listed: dict[str, str] = read_json(checkpoint / "model.safetensors.index.json").get("weight_map", {})
    except UserError:  # there is none
        return ["model.safetensors"]
    return sorted(set(listed.values()))


def _standing_on(step: Planned, runs: Sequence[Planned]) -> Iterator[Planned]:
    """A step and the runs begun, in order, that take in something of it, or of what was made from it."""
    names, made = {step.name}, [step.folder]
    for planned in runs:
        checkpoint = _checkpoint(planned.config)  # one that is not ours is none of `begins_as`
        begins_here = checkpoint is not None and any(checkpoint.is_relative_to(folder) for folder in made)
        if planned == step or names & {*planned.parents} or begins_here:
            if planned.kind == "step":
                names.add(planned.name)
                made.append(planned.folder)
            if planned.folder.exists():
                yield planned


def needs(config: StageConfig, *, made: Path | None = None) -> Iterator[Need]:
    """What a stage's settings name beside packages and servers, the cheapest first."""
    is_there = partial(_is_made, made=made)  # or will be
    yield from _reckoning(config)
    if references := list(_references(config)):
        yield Need("your own code", partial(_loaded, references))
    if isinstance(config, SftConfig):
        files = [file for file in config.data.files if not is_there(file)]
        yield Need("data", partial(_rows, files, len(config.data.files)))
    if isinstance(config, RftConfig) and config.sources:
        yield Need("sources", partial(_runs, [source for source in config.sources if not is_there(source)]))
    checkpoint = _checkpoint(config)
    if checkpoint is not None and not is_there(checkpoint):
        yield Need("checkpoint", partial(_model, checkpoint))
        if isinstance(config, SftConfig):
            yield Need("tokenizer", partial(_tokenizer, checkpoint))
    if isinstance(config, PlayConfig) and not (isinstance(config, AgentConfig) and not config.plays):
        yield Need("keys", partial(_keys, config))
        if not config.plugins:  # they may register domains, in the processes of the run
            yield Need("tasks", partial(_tasks, config))
        if not (config.chat.tokenizer and is_there(config.chat.tokenizer)):
            yield Need("chat template", partial(_template, config))


def needs_of_settings(config: StageConfig) -> Iterator[Need]:
    """What can be told of a run on other machines, which have files, keys and packages of their own."""
    if not isinstance(config, PlayConfig) or (isinstance(config, AgentConfig) and not config.plays) or not importable("tau2"):
        return
    if not (config.plugins or config.tasks.source or config.reward.recipe or config.reward.terms):
        yield Need("tasks", partial(_tasks, config))
    of_files = config.chat.tokenizer not in (None, "bytes") or config.chat.cookbook_prompt
    if not (of_files or plugins.is_reference(config.chat.protocol)):
        yield Need("chat template", partial(_template, config))


def _reckoning(config: StageConfig) -> Iterator[Need]:
    """What the budget needs, and what the result is set beside."""
    budget = budget_of(config)
    if budget.max_usd is not None:
        yield Need("prices", partial(refuse_unpriced, config))
    if isinstance(config, EvalConfig) and config.card is not None:
        yield Need("card", partial(_card, config))
    if budget.like is not None:
        yield Need("earlier run", partial(_like, config, budget.like))


def _card(config: EvalConfig) -> str:
    row = card_for(config, "")
    return "none" if row is None else f"{row.model}: {row.source}"


def _like(config: StageConfig, like: Path) -> str:
    """The basis of an estimate."""
    return str(estimate_from(like, config, 1)["basis"])


def _references(config: StageConfig) -> Iterator[tuple[str, str]]:
    """(kind, reference) of the code that the settings name and that nothing else here loads."""
    if isinstance(config, AgentConfig) and plugins.is_reference(config.policy.kind):
        yield "policy", config.policy.kind
    if isinstance(config, SftConfig | GrpoConfig):
        if plugins.is_reference(config.backend):
            yield "backend", config.backend
        yield from (("sink", name) for name in config.tracking.sinks)


def _loaded(references: list[tuple[str, str]]) -> str:
    plugins.search([Path.cwd()])
    for kind, reference in references:
        plugins.load_plugin(reference, kind=kind)
    return ", ".join(reference for _, reference in references)


def _rows(files: list[Path], named: int) -> str:
    from tau2rl.data.jsonl import refuse_folder
    from tau2rl.recipes.sft import refuse_no_rows

    refuse_no_rows(named)
    for file in files:
        path = file.expanduser()
        if not path.exists():
            raise UserError(f"no file `{file}` (data.files)", hint="JSONL rows, as `tau2rl seed` and `rft-filter` write them")
        refuse_folder(path)
        if not path.is_file():
            raise UserError(f"cannot read `{file}`: it is not a file", hint="name a JSONL file of rows")
    return ", ".join(map(str, files)) or "made by earlier steps"


def _runs(sources: list[Path]) -> str:
    from tau2rl.runs.folder import read_config

    for source in sources:
        read_config(source.expanduser().absolute())
    return ", ".join(map(str, sources)) or "made by earlier steps"


def _checkpoint(config: StageConfig) -> Path | None:
    """The model that a run starts from or plays with, where it is a folder."""
    if isinstance(config, AgentConfig):
        return config.policy.checkpoint if config.plays else None
    if isinstance(config, SftConfig | GrpoConfig) and config.model.init != "tiny":
        return Path(config.model.init)
    return None


def _model(checkpoint: Path) -> str:
    from tau2rl.runs.provenance import refuse_no_checkpoint

    refuse_no_checkpoint(checkpoint.expanduser())
    return str(checkpoint)


def _keys(config: PlayConfig) -> str:
    """The variables of the keys that models behind an API need, as far as they can be told by the models' names."""
    asked = [("user", config.user.model, config.user.api_base, config.user.api_key_env)] if _asks_a_user(config) else []
    if isinstance(config, AgentConfig) and config.policy.kind == "api":
        asked.append(("policy", config.policy.model or "", config.policy.api_base, config.policy.api_key_env))
    names: list[str] = []
    for section, model, api_base, variable in asked:
        key = services.key_of(model, api_base, variable)
        if key and settings.secret(key) is None:
            other = ", or use `--user-model scripted`" if section == "user" else ""
            message = f"no key for {section}.model `{model}`: `{key}` is not set"
            raise UserError(message, hint=f"export it, or name another variable with `{section}.api_key_env`{other}")
        names += [key] if key else []
    return f"set: {', '.join(dict.fromkeys(names))}" if names else "none is needed, as far as the models' names tell"


def _asks_a_user(config: PlayConfig) -> bool:
    """Whether a user model is asked that the run does not serve itself."""
    return config.user.kind == "llm" and not (isinstance(config, GrpoConfig) and config.serves_user)


def _tasks(config: PlayConfig) -> str:
    from tau2rl.env.tasks import refuse_held_out, select, training_tasks
    from tau2rl.reward.calibration import read_recipe
    from tau2rl.reward.presets import spec_from

    plugins.search([Path.cwd()])
    if isinstance(config, GrpoConfig):
        tasks, val_tasks = training_tasks(config)
    else:
        tasks, val_tasks = select(config.tasks), []
        if isinstance(config, LearnConfig) and not config.allow_held_out:
            refuse_held_out(tasks)
    spec_from(config.reward, max_turns=config.limits.max_turns, domains=config.tasks.domains)
    if config.reward.recipe is not None:
        read_recipe(config.reward.recipe)
    more = f", {len(val_tasks)} to validate on" if val_tasks else ""
    return f"{len(tasks)} of {', '.join(config.tasks.domains)}, split `{config.tasks.split}`{more}"


def _template(config: PlayConfig) -> str:
    from tau2rl.chat import make_codec

    plugins.search([Path.cwd()])
    make_codec(config.chat)
    return f"{config.chat.protocol}, tokenizer `{config.chat.tokenizer or 'none'}`"


def _tokenizer(checkpoint: Path) -> str:
    from tau2rl.chat.tokenizers import load_tokenizer

    load_tokenizer(str(checkpoint.expanduser()))
    return str(checkpoint)
