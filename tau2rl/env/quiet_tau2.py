"""Makes tau2 ready to be imported: the right package, read as UTF-8, no log lines, no price list from the network, no litellm.

Importing this module does it; every module of this package imports it, directly or through another, before tau2. tau2 imports
litellm at its top, in one module: 1.4 of 1.9 seconds of CPU and 137 of 231 MB. Nothing here calls it through tau2 (our own
clients talk to the user model), so that module is imported with stand-ins in litellm's place. A function of litellm that
somebody calls through tau2 all the same finds the real one.
"""

from __future__ import annotations

import importlib
import locale
import sys
from types import ModuleType
from typing import Any

from tau2rl.env.package import installed
from tau2rl.errors import UserError
from tau2rl.settings import UTF8_MODE, quiet_libraries, reads_utf8

STAND_INS = ("litellm", "litellm.caching", "litellm.caching.caching", "litellm.main")  # what tau2.utils.llm_utils imports


class _StandIn(ModuleType):
    """A module whose every name is a function: nothing while tau2 is imported, litellm's own afterwards."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []  # a package, for what is imported from below it

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def function(*arguments: Any, **named: Any) -> Any:
            module = importlib.import_module(self.__name__)
            return None if module is self else getattr(module, name)(*arguments, **named)

        return function


def _import_without_litellm() -> None:
    if "litellm" in sys.modules:  # whoever imported it has paid already
        return
    sys.modules.update({name: _StandIn(name) for name in STAND_INS})
    try:
        importlib.import_module("tau2.utils.llm_utils")
    finally:
        for name in STAND_INS:
            del sys.modules[name]


def _refuse_other_encodings() -> None:
    if not reads_utf8():
        raise UserError(
            f"this process reads files as {locale.getencoding()}, and those of tau2 are UTF-8",
            hint=f"`{UTF8_MODE}=1` in its environment, or a locale such as C.UTF-8",
        )


def _prepare() -> None:
    installed()
    _refuse_other_encodings()
    quiet_libraries()
    from loguru import logger

    logger.disable("tau2")
    _import_without_litellm()


_prepare()
