"""Text to plain values, typed by the setting that it is for and never by a guess: YAML files, `--set`, options.

`name: 1e-5` is the name `1e-5` and `lr: 1e-5` a number, because one field is text and the other is not. Reading ends in bounded
time and memory whatever the file is: a device, a bomb of aliases, a mapping that holds itself.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin

import yaml
from pydantic import BaseModel
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from tau2rl.config.base import arms_of, items_of, section_of, values_of
from tau2rl.config.stages import STAGES, EvaluationConfig, StepConfig
from tau2rl.errors import UserError

MOST_BYTES = 256 * 1024  # of a file: three seconds of PyYAML; a pipeline with every setting written out has 20 KiB
MOST_VALUES = 50_000  # with aliases written out
DEEPEST = 40
NULL = ("", "~", "null", "Null", "NULL")
SWITCH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
HANDED = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")  # pipes that the shell gave to this process
IN_QUOTES = "a text with brackets at its head, or in a list in brackets, stands in quotes: `'telecom/[service_issue]...'`"
TAGS = ("null", "bool", "int", "float", "str", "timestamp", "seq", "map", "merge", "value")


class Unreadable(Exception):
    """Text that is no settings, and the line, counted from 1, where that shows."""

    def __init__(self, message: str, line: int) -> None:
        self.line = line
        super().__init__(message)


def read_mapping(file: Path, model: Any = Any) -> dict[str, Any]:
    """The mapping in a YAML or JSON file, its scalars typed by the fields of `model`. Raises UserError with file and line."""
    text = _text_of(file)
    try:
        node = _compose(text)
        if node is None:
            return {}
        if not isinstance(node, MappingNode):
            raise UserError(f"config file `{file}` is not a mapping of settings")
        return cast("dict[str, Any]", _Values().of(node, model))
    except Unreadable as error:
        hint = IN_QUOTES if "[" in "".join(text.splitlines()[error.line - 1 : error.line]) else ""
        raise UserError(f"cannot read config file `{file}`, line {error.line}: {error}", hint=hint) from None


def read_text(texts: Sequence[str], annotation: Any) -> Any:
    """What was typed for one setting, once or repeatedly; what cannot be read stays text, which validation then refuses.

    A list is separated by commas or repeated, a mapping is `KEY=VALUE`, repeated; both may be YAML in brackets.

    >>> read_text(["1e-5"], str), read_text(["1e-5"], float), read_text(["a,b", "010"], tuple[str, ...])
    ('1e-5', 1e-05, ['a', 'b', '010'])
    >>> read_text(["null"], int | None), read_text(["a=1", "b=x"], dict[str, object])
    (None, {'a': 1, 'b': 'x'})
    """
    items, values = items_of(annotation), values_of(annotation)
    if items is not None and not (texts[-1] in NULL and type(None) in arms_of(annotation)):
        return [part for text in texts for part in _parts(text, items, annotation)]
    if (values is not None or section_of(annotation)) and all("=" in text and text[:1] != "{" for text in texts):
        return _pairs(texts, annotation)
    return _one(texts[-1], annotation)


def _pairs(texts: Sequence[str], annotation: Any) -> dict[str, Any]:
    """`KEY=VALUE`, repeated; a dotted key leads into a section."""
    made: dict[str, Any] = {}
    for text in texts:
        key, _, value = text.partition("=")
        path = key.strip().split(".") if section_of(annotation) else [key.strip()]
        place, kind = made, annotation
        for part in path[:-1]:
            place, kind = place.setdefault(part, {}), inner_type(kind, part)
        place[path[-1]] = read_text([value], inner_type(kind, path[-1]))
    return made


def _parts(text: str, items: Any, annotation: Any) -> list[Any]:
    if text[:1] == "[":
        value = _one(text, annotation)
        return cast("list[Any]", value) if isinstance(value, list) else [value]
    if text[:1] == "{":  # one item that is a section
        return [_one(text, items)]
    return [_one(part.strip(), items) for part in text.split(",") if part.strip()]


def _one(text: str, annotation: Any) -> Any:
    """A scalar as it was typed, without quotes around the whole of it; YAML where it begins with a bracket."""
    if text.startswith(("[", "{")) and not _is_text(annotation):
        try:
            node = _compose(text)
            return text if node is None else _Values().of(node, annotation)
        except Unreadable:
            return text
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else _scalar(text, annotation)


def _text_of(file: Path) -> str:
    try:
        kind = file.stat().st_mode
        # A pipe of the shell ends with the command that fills it; one that lies in a folder may wait for ever.
        if not stat.S_ISREG(kind) and not (stat.S_ISFIFO(kind) and str(file).startswith(HANDED)):
            raise UserError(f"cannot read config file `{file}`: it is not a file")
        with file.open("rb") as stream:
            data = stream.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise UserError(
                f"cannot read config file `{file}`: it has more than {MOST_BYTES // 1024} KiB", hint="is it settings?"
            )
        return data.decode("utf-8")
    except FileNotFoundError:
        raise UserError(f"no such config file `{file}`", hint=_ready_made(file)) from None
    except (OSError, ValueError) as error:  # ValueError: no text, or a name with a NUL in it
        message = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "it is not text in UTF-8"
        raise UserError(f"cannot read config file `{file}`: {message}") from None


def _ready_made(file: Path) -> str:
    """Where a config is that was looked for from another folder than the clone's."""
    clone = Path(__file__).parents[2]
    if (clone / file).is_file():
        return f"there is {shlex.quote(str(clone / file))}; paths are meant from where you are"
    here = Path.cwd() == clone or not (clone / "configs").is_dir()
    return f"the ready-made ones are in {'`configs/`' if here else shlex.quote(str(clone / 'configs'))}"


class _Loader(yaml.SafeLoader):
    """PyYAML's, which nests no deeper than a config does: its own limit is Python's stack."""

    depth = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        self.depth += 1
        if self.depth > DEEPEST:
            event: Any = cast("Any", self).peek_event()
            raise Unreadable(f"it is nested more than {DEEPEST} deep", event.start_mark.line + 1)
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def _compose(text: str) -> Node | None:
    """The nodes of YAML text, aliases shared; None where there is nothing. Raises Unreadable."""
    try:
        return _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise Unreadable(error.problem or error.context or "it is not YAML", mark.line + 1 if mark else 1) from None
    except yaml.reader.ReaderError as error:
        line = text[: max(error.position, 0)].count("\n") + 1
        raise Unreadable(f"a character that YAML does not allow, {int(error.character):#06x}", line) from None


class _Values:
    """Nodes to values of a type. Counts what it makes, so that aliases of aliases end, and knows what it is inside of."""

    def __init__(self) -> None:
        self._made = 0
        self._inside: list[Node] = []

    def of(self, node: Node, annotation: Any) -> Any:
        self._made += 1
        if self._made > MOST_VALUES:
            raise Unreadable(f"its aliases stand for more than {MOST_VALUES} values", self._line(node))
        tag = str(node.tag)
        if tag.removeprefix("tag:yaml.org,2002:") not in TAGS:
            raise Unreadable(f"the tag `{tag}` is none of settings", _line(node))
        if isinstance(node, ScalarNode):
            as_it_is = node.style is not None or (tag.endswith(":str") and node.value in NULL)  # quoted, or `!!str null`
            return node.value if as_it_is else _scalar(node.value, annotation)
        if any(node is outer for outer in self._inside):
            raise Unreadable("a value that holds itself", _line(node))
        if len(self._inside) >= DEEPEST:
            raise Unreadable(f"it is nested more than {DEEPEST} deep", self._line(node))
        self._inside.append(node)
        made = self._list(node, annotation) if isinstance(node, SequenceNode) else self._mapping(node, annotation)
        self._inside.pop()
        return made

    def _line(self, node: Node) -> int:
        """The line of the setting that is being made: a node behind an alias stands elsewhere."""
        return _line(self._inside[1] if len(self._inside) > 1 else node)

    def _list(self, node: SequenceNode, annotation: Any) -> list[Any]:
        items = items_of(annotation)
        if items is None:
            items = str if _is_text(annotation) else Any  # several words for one text: its field says what that means
        return [self.of(item, items) for item in node.value]

    def _mapping(self, node: Node, annotation: Any) -> dict[str, Any]:
        pairs = cast("list[tuple[Node, Node]]", node.value)
        own: dict[str, tuple[Node, Node]] = {}
        merged: list[Node] = []
        for key, value in pairs:
            if not isinstance(key, ScalarNode):
                raise Unreadable("the name of a setting is a word", _line(key))
            if str(key.tag).endswith(":merge"):
                merged += value.value if isinstance(value, SequenceNode) else [value]
            elif key.value in own:
                raise Unreadable(f"`{key.value}` stands there a second time, after line {_line(own[key.value][0])}", _line(key))
            else:
                own[key.value] = key, value
        made: dict[str, Any] = {}
        for other in reversed(merged):  # of several, the first one wins
            below = self.of(other, annotation)
            if not isinstance(below, dict):
                raise Unreadable("`<<` takes in a mapping", _line(other))
            made |= cast("dict[str, Any]", below)
        stage = own["stage"][1].value if "stage" in own else None
        return made | {key: self.of(value, inner_type(annotation, key, stage)) for key, (_, value) in own.items()}


def inner_type(annotation: Any, key: str, stage: Any = None) -> Any:
    """The type of one setting of a section or one value of a mapping; of a name that there is not, anything.

    What stands below `settings` of a pipeline's step is read as settings of its `stage`.
    """
    section = section_of(annotation)
    if section is None:
        values = values_of(annotation)
        return Any if values is None else values
    if key == "settings" and (inner := _every_setting_step(section, stage)):
        return inner
    info = section.model_fields.get(key)
    return Any if info is None else info.annotation


def _every_setting_step(section: type[BaseModel], stage: Any) -> type[BaseModel] | None:
    if issubclass(section, EvaluationConfig):
        return STAGES["eval"]
    return STAGES.get(str(stage)) if issubclass(section, StepConfig) else None


def _is_text(annotation: Any) -> bool:
    """Whether a setting is text, whatever else it may be."""
    return any(arm in (str, Path) or get_origin(arm) is Literal for arm in arms_of(annotation))


def _scalar(text: str, annotation: Any) -> Any:
    """A plain scalar as the setting takes it."""
    arms = arms_of(annotation)
    free = Any in arms or object in arms or not any(arm in (str, Path, int, float, bool) or get_args(arm) for arm in arms)
    if text in NULL and (type(None) in arms or free or not text):
        return None
    if (bool in arms or free) and text.lower() in SWITCH:
        return SWITCH[text.lower()]
    if (int in arms or float in arms or free) and len(text) < 100:
        if INTEGER.fullmatch(text):
            return int(text)
        if NUMBER.fullmatch(text) and not (free and re.match(r"[-+]?0[0-9]", text)):  # `010` is more likely an id than ten
            return float(text)
    return text


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1
