"""From a file, `--set a.b=c` and options to a config, and from a config to plain values.

The one way in is `build`: unknown keys are errors, as are settings without effect, and every error is a `UserError` in words.
The names that settings had before are accepted for one release: in files, `--set`, options and the stored config of old runs.
"""

from __future__ import annotations

import difflib
import json
import re
import shlex
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tau2rl.config.base import Section, every_setting, known_names
from tau2rl.config.effects import refuse_idle
from tau2rl.config.reading import DEEPEST, inner_type, read_mapping, read_text
from tau2rl.config.stages import STAGES
from tau2rl.errors import UserError

SHOWN = 200  # characters of a name or value that a message repeats
UNSEEN = {"api_key_env", "api_base", "url", "address"}  # settings whose wrong values no message repeats


def explain(model: type[BaseModel], error: ValidationError) -> UserError:
    """The mistakes that pydantic found, one a line, with hints."""
    names = known_names(model)
    lines: list[str] = []
    hints: list[str] = []
    for item in error.errors(include_url=False):
        name = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            lines.append(f"no such setting `{name}`")
            hints += _elsewhere(model, name) or _meant(_nearest_setting(name, names))
        else:
            lines.append(_sentence(name, item))
            hints += _meant(_nearest_word(item))
    return UserError("\n".join(lines), hint="\n".join(dict.fromkeys(hints)) or "`tau2rl config show` lists every setting")


def _elsewhere(model: type[BaseModel], name: str) -> list[str]:
    """The stages that have a setting which the stage of this config has not."""
    stages = [stage for stage, other in STAGES.items() if name in known_names(other)] if "stage" in model.model_fields else []
    return [f"`{name}` is a setting of {', '.join(stages)}"] if stages else []


def _nearest_setting(name: str, names: list[str]) -> list[str]:
    """The setting with the nearest dotted name, else with the nearest last part (which stands elsewhere)."""
    return difflib.get_close_matches(name, names, n=1, cutoff=0.5) or difflib.get_close_matches(
        name.rpartition(".")[2], [n.rpartition(".")[2] for n in names], n=1
    )


def _nearest_word(item: ErrorDetails) -> list[str]:
    """Of the words that the setting may be, the nearest."""
    if item["type"] != "literal_error":
        return []
    words = re.findall(r"'([^']+)'", str(item.get("ctx", {}).get("expected", "")))
    return difflib.get_close_matches(str(item["input"]), words, n=1)


def _meant(near: list[str]) -> list[str]:
    return [f"did you mean `{near[0]}`?"] if near else []


def _sentence(name: str, item: ErrorDetails) -> str:
    message = item["msg"].removeprefix("Value error, ")
    message = f"{message[:1].lower()}{message[1:]}"
    if not name:
        return message
    value: Any = item["input"]
    unseen = isinstance(value, dict) or UNSEEN.intersection(map(str, item["loc"]))
    text = json.dumps(value, default=str)
    shown = "" if unseen else f" = {text}" if len(text) <= SHOWN else f" = {text[:SHOWN]}..."
    return f"`{name}`{shown}: {message}"


C = TypeVar("C", bound=Section)


def build(model: type[C], values: Mapping[str, Any], *, stored: bool = False) -> C:
    """Validate `values` as `model`. Raises UserError that names the key and, for an unknown one, the nearest.

    A setting that has no effect under the others is refused, but not where `stored`: what ran once can be read again.
    """
    current = with_new_names(model, values)
    _refuse_unwritable(current)
    try:
        config = model.model_validate(current)
    except ValidationError as error:
        raise explain(model, error) from None
    if not stored:
        refuse_idle(config, current)
    return config


def _refuse_unwritable(values: Mapping[str, Any]) -> None:
    """Raise UserError for text that no file, path or process can take: a NUL, or half of a surrogate pair."""
    for name, value in flatten(values).items():
        text = "".join(map(str, cast("list[object]", value))) if isinstance(value, list | tuple) else str(value)
        if "\0" in text:
            raise UserError(f"setting `{name}` holds a NUL character", hint="leave it out")
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise UserError(f"setting `{name}` is no valid text", hint="type it as UTF-8")


def load_config(model: type[C], file: Path | None, sets: Sequence[str] = (), options: Mapping[str, Any] | None = None) -> C:
    """The config of a run: a YAML or JSON file, then `--set a.b=c`, then options of the command line.

    `options` maps dotted names to what was typed, once or repeatedly, which is read as the setting takes it, or to values; None
    means "not given". Raises UserError.
    """
    values = read_mapping(file, model) if file else {}
    _refuse_other_stage(model, values, file)
    values = with_new_names(model, values)
    typed: dict[str, Any] = {}
    for item in sets:
        name, equals, text = item.partition("=")
        if not equals:
            raise UserError(f"cannot read `--set {item}`", hint="write it as NAME=VALUE, for example --set rollout.num_samples=8")
        _put(model, values, typed, name.strip(), text)
    for name, value in (options or {}).items():
        if value is not None:
            _put(model, values, typed, name, value)
    with_new_names(model, typed)  # says which of them are old
    return build(model, values)


COMMANDS = {"pipeline": "run"}  # of the stages whose command has another name


def _refuse_other_stage(model: type[BaseModel], values: Mapping[str, Any], file: Path | None) -> None:
    """Raise UserError where a file says that it is of another stage: none of its settings needs to be read then."""
    mine = model.model_fields["stage"].default if "stage" in model.model_fields else None
    its = values.get("stage", mine)
    if mine and its != mine:
        command = f"tau2rl {COMMANDS.get(str(its), its)} -c {shlex.quote(str(file))}"
        raise UserError(f"`{file}` is a config of stage `{its}`, not of `{mine}`", hint=f"did you mean `{command}`?")


def _put(model: type[BaseModel], values: dict[str, Any], typed: dict[str, Any], name: str, value: Any) -> None:
    """Set what was typed under the name of today, and remember the name that was typed."""
    put(typed, name, value)
    current = new_name(model, name)
    texts = cast("list[object]", [value] if isinstance(value, str) else value if isinstance(value, list) else [])
    if texts and all(isinstance(text, str) for text in texts):
        value = read_text(cast("list[str]", texts), type_of(model, current, values))
    put(values, current, value)


def type_of(model: type[BaseModel], name: str, values: Mapping[str, Any] | None = None) -> Any:
    """The type of a dotted name, also below a mapping; `values` say of which stage a pipeline's steps are.

    >>> from tau2rl.config.stages import StageConfig
    >>> type_of(StageConfig, "launch.inline"), type_of(StageConfig, "no.such")
    (<class 'bool'>, typing.Any)
    """
    annotation: Any = model
    place: Any = values or {}
    for key in name.split("."):
        stage = cast("dict[str, Any]", place).get("stage") if isinstance(place, dict) else None
        annotation = inner_type(annotation, key, stage)
        place = cast("dict[str, Any]", place).get(key) if isinstance(place, dict) else None
    return annotation


def read_config_file(file: Path, model: type[BaseModel] | None = None) -> dict[str, Any]:
    """The mapping in a YAML or JSON file, its scalars typed by the settings of `model`, old names replaced. Raises UserError."""
    return read_mapping(file) if model is None else with_new_names(model, read_mapping(file, model))


def put(values: dict[str, Any], name: str, value: Any) -> None:
    """Set a dotted name in nested mappings, making the ones on the way.

    >>> d = {}
    >>> put(d, "a.b", 1)
    >>> d
    {'a': {'b': 1}}
    """
    *path, last = name.split(".")
    if len(path) > DEEPEST:
        raise UserError(
            f"`{name[:SHOWN]}...` is nested more than {DEEPEST} deep", hint="`tau2rl config show` lists every setting"
        )
    for part in path:
        inner = values.setdefault(part, {})
        if not isinstance(inner, dict):
            raise UserError(f"`{part}` in `{name}` is a value, not a section")
        values = cast("dict[str, Any]", inner)
    values[last] = value


def dump(config: Section) -> dict[str, Any]:
    """The config as JSON-ready values, every setting resolved."""
    return config.model_dump(mode="json")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted names to values.

    >>> flatten({"a": {"b": 1}, "c": [2]})
    {'a.b': 1, 'c': [2]}
    """
    out: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            out.update(flatten(cast("dict[str, Any]", value), f"{name}."))
        else:
            out[name] = value
    return out


# Old name -> new name, None for a setting that is gone; of a section, for all that is below it. A row counts where a config
# class lacks the old name and, unless it is None, has the new one.
RENAMED: dict[str, str | None] = {
    "train.clip": "train.max_grad_norm",
    "train.min_lr_share": "train.min_lr_ratio",
    "train.eval_every": "train.val_every",
    "train.patience": "train.early_stopping_patience",
    "train.updates_per_batch": "train.num_minibatches",
    "algo.normaliser": "algo.loss_aggregation",
    "algo.constant": "algo.loss_scale",
    "algo.max_refills": "algo.max_resample_rounds",
    "local.micro_tokens": "local.max_tokens_per_microbatch",
    "local.slots": "local.kv_cache_slots",
    "data.held_out": "data.val_fraction",
    "user.patience": "user.max_stalled_turns",
    "slip": "noise_prob",
    "select": "val",
    "slime.outage_seconds": "slime.circuit_breaker_seconds",
    "policy.hedge_seconds": None,
    "local.shape": None,  # where no model is made
}


class SettingRenamed(FutureWarning):
    """A setting was given by a name that the next release will not know."""


def old_names(model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """Each old name of a setting of `model` with the name that it has now, those below a renamed section included."""
    for old, new in _rows(model):
        for setting in every_setting(model):
            if new is not None and (setting.name == new or setting.name.startswith(f"{new}.")):
                yield old + setting.name.removeprefix(new), setting.name


def with_new_names(model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values under the names of today, with one warning that names them. Raises UserError where both names are given."""
    current = _copied(values)
    told: list[str] = []
    for old, new in _rows(model):
        place, key = _section(current, old), old.rpartition(".")[2]
        if place is None or key not in place:
            continue
        value = place.pop(key)
        if new is None:
            told += [f"`{old}` is gone, and has no effect"] if value is not None else []
            continue
        told.append(f"`{old}` is now `{new}`")
        target, name = _section(current, new, make=True), new.rpartition(".")[2]
        if target is None or name in target:
            raise UserError(f"`{old}` is the old name of `{new}`, and both are given", hint=f"leave out `{old}`")
        target[name] = value
    if told:
        warnings.warn("; ".join(told), SettingRenamed, stacklevel=2)
    return current


def new_name(model: type[BaseModel], name: str) -> str:
    """The name of today for a dotted name.

    >>> from tau2rl.config import GrpoConfig
    >>> new_name(GrpoConfig, "select.limit"), new_name(GrpoConfig, "train.lr")
    ('val.limit', 'train.lr')
    """
    for old, new in _rows(model):
        if new is not None and (name == old or name.startswith(f"{old}.")):
            return new + name.removeprefix(old)
    return name


def _rows(model: type[BaseModel]) -> list[tuple[str, str | None]]:
    names = set(known_names(model))
    return [
        (old, new)
        for old, new in RENAMED.items()
        if old not in names and (new in names or (new is None and old.partition(".")[0] in names))
    ]


def _section(values: dict[str, Any], name: str, *, make: bool = False) -> dict[str, Any] | None:
    """The mapping that holds the last part of a dotted name, if it is there or may be made."""
    for part in name.split(".")[:-1]:
        inner = values.setdefault(part, {}) if make else values.get(part)
        if not isinstance(inner, dict):
            return None
        values = cast("dict[str, Any]", inner)
    return values


def _copied(values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested mappings, so that the caller's keep their names."""
    return {k: _copied(cast("Mapping[str, Any]", v)) if isinstance(v, Mapping) else v for k, v in values.items()}
