"""Code of the user's, named in settings as `package.module:Name`: found, loaded, and named in a run's identity.

    policy.kind: "my_pkg.echo:Echo"                      reward.terms: [{fn: "my_pkg:brevity", weight: 0.1}]
    chat.protocol: "my_pkg.codec:MyCodec"                tracking.sinks: ["my_pkg:MySink"]
    backend: "my_pkg.trainer:MyBackend"
    plugins: ["my_pkg.my_domain"]                        # modules that are imported at the start of a run

Every process of a run looks where the command looked: its working directory and `PYTHONPATH`, behind what is installed, so that
files of the user's hide no library.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from tau2rl.errors import UserError

_DOTTED = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"
REFERENCE, MODULE = re.compile(f"{_DOTTED}:{_DOTTED}"), re.compile(_DOTTED)


def is_reference(text: str) -> bool:
    """Whether a setting names code of the user's.

    >>> is_reference("my_pkg.echo:Echo"), is_reference("gold"), is_reference("http://127.0.0.1")
    (True, False, False)
    """
    return REFERENCE.fullmatch(text) is not None


def search(directories: Iterable[str | Path]) -> None:
    """Look for modules in these directories too, behind those that Python knows already."""
    for directory in map(str, directories):
        if directory and directory not in sys.path:
            sys.path.append(directory)


def import_all(modules: Iterable[str]) -> None:
    """Import the modules of `plugins`. Raises UserError that says what is wrong with one."""
    for name in modules:
        _import(name, wanted=f"plugin `{name}`")


def load_plugin(reference: str, *, kind: str) -> Any:
    """What `package.module:Name` names; `kind` says in messages what it is for ("policy", "reward term").

    Raises UserError: no such module or name (with the nearest one), or a module that cannot be imported.
    """
    name, _, path = reference.partition(":")
    found: Any = _import(name, wanted=f"{kind} `{reference}`")
    where = getattr(found, "__file__", None) or name
    for attribute in path.split("."):
        if not hasattr(found, attribute):
            near = difflib.get_close_matches(attribute, [n for n in dir(found) if not n.startswith("_")], n=1)
            hint = f"did you mean `{name}:{near[0]}`?" if near else f"what is behind the colon is a name in `{where}`"
            raise UserError(f"no {kind} `{reference}`: `{where}` has no `{attribute}`", hint=hint)
        found = getattr(found, attribute)
    if not callable(found):
        raise UserError(f"{kind} `{reference}` is {type(found).__name__} in `{where}`: a class or a function is needed")
    return found


def make_plugin(reference: str, *arguments: Any, kind: str, options: Mapping[str, Any] | None = None) -> Any:
    """What the class or factory that `reference` names gives for these arguments. Raises UserError, for wrong options too."""
    factory, options = load_plugin(reference, kind=kind), options or {}
    signature = _signature(factory)
    try:
        if signature is not None:
            signature.bind(*arguments, **options)
    except TypeError as error:
        given = ", ".join(f"`{name}`" for name in options) or "no options"
        raise UserError(
            f"{kind} `{reference}` does not take {given}: {error}", hint=f"it is `{reference.partition(':')[2]}{signature}`"
        ) from None
    return factory(*arguments, **options)


def _signature(factory: Any) -> inspect.Signature | None:
    try:
        return inspect.signature(factory)
    except ValueError:  # written in C: it says itself what it takes
        return None


def references(settings: Mapping[str, Any]) -> dict[str, list[str]]:
    """Setting -> the references or modules that it names, in a run's settings as plain values.

    >>> references({"policy": {"kind": "a:B"}, "reward": {"terms": [{"fn": "a:c"}]}, "plugins": ["d"], "backend": "local"})
    {'policy.kind': ['a:B'], 'reward.terms': ['a:c'], 'plugins': ['d']}
    """

    def section(name: str) -> Mapping[str, Any]:
        return settings.get(name) or {}

    named: dict[str, list[Any]] = {
        "backend": [settings.get("backend")],
        "policy.kind": [section("policy").get("kind")],
        "chat.protocol": [section("chat").get("protocol")],
        "reward.terms": [term["fn"] for term in section("reward").get("terms", ())],
        "tracking.sinks": list(section("tracking").get("sinks", ())),
    }
    found = {name: [v for v in values if isinstance(v, str) and is_reference(v)] for name, values in named.items()}
    found["plugins"] = list(settings.get("plugins", ()))
    return {name: values for name, values in found.items() if values}


def identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`{"plugins": {"policy.kind": {"my_pkg.echo:Echo": "1f0c... my_pkg 0.3"}}}`, part of what a run stands on; {} without any.

    A hash of the source: of the file, or of every Python file of the package that it is in. Raises UserError.
    """
    named = references(settings)
    described = {name: {value: _described(value.partition(":")[0]) for value in values} for name, values in named.items()}
    return {"plugins": described} if described else {}


def reference_of(thing: Any) -> str:
    """How settings would name an object's class, or a function: `my_pkg.echo:Echo`, for a run that was given the thing itself."""
    has_name = inspect.isroutine(thing) or inspect.isclass(thing)
    named = cast("Any", thing if has_name else type(thing))
    name = re.sub(r"\W", "", named.__qualname__.rpartition(".")[2]) or "unnamed"
    return f"{named.__module__}:{name}"


def _described(module: str) -> str:
    loaded = _import(module, wanted=f"plugin `{module}`")
    top = sys.modules[module.partition(".")[0]]
    digest = hashlib.sha256()
    for file in _sources(top, loaded):
        digest.update(file.read_bytes())
    try:
        return f"{digest.hexdigest()[:16]} {top.__name__} {metadata.version(top.__name__)}"
    except metadata.PackageNotFoundError:
        return digest.hexdigest()[:16]


def _sources(top: ModuleType, module: ModuleType) -> list[Path]:
    """The files of a module that can change what it does: those of its package; its own in a folder that is no package."""
    if getattr(top, "__file__", None) and hasattr(top, "__path__"):
        return sorted(file for folder in top.__path__ for file in Path(folder).rglob("*.py"))
    file = getattr(module, "__file__", None)  # a notebook has none
    return [Path(file)] if file else []


def _import(name: str, *, wanted: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(f"{missing}."):
            raise UserError(f"no {wanted}: there is no module `{missing}`", hint=_nearest_module(name, missing)) from None
        raise UserError(f"{wanted} cannot be loaded: {_place(error)}: it needs `{missing}`, which is not installed") from error
    # What a module of the user's may raise as it is imported: anything. It is theirs to mend, so it is told with its place.
    except Exception as error:
        raise UserError(f"{wanted} cannot be loaded: {_place(error)}: {type(error).__name__}: {error}") from error


def _nearest_module(name: str, missing: str) -> str:
    """The module that was meant, else where modules are looked for."""
    parent = missing.rpartition(".")[0]
    folders: Sequence[str] = cast("Sequence[str]", sys.modules[parent].__path__) if parent in sys.modules else sys.path
    inside = (path for folder in folders if Path(folder).is_dir() for path in Path(folder).iterdir())
    names = {path.stem for path in inside if path.stem.isidentifier() and (path.suffix == ".py" or path.is_dir())}
    near = difflib.get_close_matches(missing.rpartition(".")[2], names, n=1)
    if near:
        return f"did you mean `{f'{parent}.' if parent else ''}{near[0]}{name[len(missing) :]}`?"
    return f"modules are looked for in the working directory `{Path.cwd()}`, in PYTHONPATH and among what is installed"


def _place(error: BaseException) -> str:
    """File and line in which an exception arose."""
    if isinstance(error, SyntaxError):
        return f"`{error.filename}` line {error.lineno}"
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"`{trace.tb_frame.f_code.co_filename}` line {trace.tb_lineno}" if trace else "at its import"
