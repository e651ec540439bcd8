"""litellm, imported when it is first used and not with tau2.

litellm is most of what importing tau2 takes (2 of 3 seconds of CPU, 140 of 230 MB), and only a customer, an agent or a judge
that is a model behind an API needs it. One module of tau2 imports it, `tau2.utils.llm_utils`. That module is first carried out
with stand-ins in litellm's place; when litellm is imported, by whatever needs it, it is carried out again, with the real one,
before anybody can use it. Its functions see the real names then, because they look them up in their module.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

LITELLM, USER = "litellm", "tau2.utils.llm_utils"
STOOD_IN = (LITELLM, "litellm.caching", "litellm.caching.caching", "litellm.main")  # what the module imports


def put_off() -> None:
    """From now on tau2 is imported without litellm. For a process of our own; safe to call twice."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds what Python finds, and steps in where litellm is to be left out, or has come."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if (fullname != USER or LITELLM in sys.modules) and fullname != LITELLM:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = (_WithStandIns if fullname == USER else _ThenAgain)(spec.loader)
        return spec


class _Wrapped(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def __getattr__(self, name: str) -> Any:  # its source for a traceback, its files
        return getattr(self._loader, name)


class _WithStandIns(_Wrapped):
    def exec_module(self, module: ModuleType) -> None:
        with _standing_in():
            self._loader.exec_module(module)


class _ThenAgain(_Wrapped):
    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        user = sys.modules.get(USER)
        if user is not None and isinstance(getattr(user, LITELLM, None), _Module):
            importlib.reload(user)


@contextmanager
def _standing_in() -> Generator[None]:
    modules = {name: _Module(name) for name in STOOD_IN}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in modules.items():
            sys.modules.pop(name, None)
            module.__dict__["_open"] = False


class _Module(ModuleType):
    """Lets settings be made and functions be called, to no effect, while the module that wants them is carried out."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []  # a package, for what is imported from below it
        self._open = True

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Name(self, name) if self._open else getattr(importlib.import_module(self.__name__), name)


class _Name:
    """A function or a class of litellm."""

    def __init__(self, module: _Module, name: str) -> None:
        self._module, self._name = module, name

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if self._module._open:
            return None
        return getattr(importlib.import_module(self._module.__name__), self._name)(*arguments, **named)
