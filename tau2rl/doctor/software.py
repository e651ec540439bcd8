"""What is installed: looks at distributions and files, imports nothing heavy."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import sys
from pathlib import Path

from tau2rl.bench import package
from tau2rl.config import DOMAINS
from tau2rl.doctor.check import Check, importable, need
from tau2rl.errors import UserError

# What Ray's job server imports (ray/dashboard/optional_deps.py); plain `pip install ray` leaves these out.
JOB_SERVER_MODULES = ("aiohttp", "aiohttp_cors", "grpc", "opencensus", "opentelemetry", "prometheus_client")
DISTRIBUTIONS = {"megatron": "megatron-core"}  # where it is not the module's own name


def check_python() -> Check:
    """The interpreter's version."""
    detail = f"{platform.python_version()} at {sys.executable}"
    return need("python", sys.version_info >= (3, 10), detail, "tau2rl needs Python 3.10 or newer")


def check_tau2() -> Check:
    """The distribution behind the import name `tau2`; the unrelated chemistry package is refused."""
    try:
        found = package.installed()
    except UserError as error:
        return Check(name="tau2-bench", state="missing", detail=error.message, hint=error.hint)
    return Check(name="tau2-bench", state="ok", detail=f"{found.distribution} {found.version}")


def check_tau2_data() -> Check:
    """The domains' data files, beside the package or where an official checkout keeps them."""
    name, hint = "tau2-bench data", f"install it again: {package.INSTALL}"
    spec = importlib.util.find_spec("tau2")
    if spec is None or not spec.submodule_search_locations:
        return Check(name=name, state="missing", detail="there is no tau2-bench that could have it", hint=package.INSTALL)
    root = Path(next(iter(spec.submodule_search_locations)))
    for folder in (root / "data", root.parent / "data", root.parent.parent / "data"):
        domains = folder / "tau2" / "domains"
        if domains.is_dir():
            lacking = [d for d in DOMAINS if not any((domains / d).glob("tasks*.json"))]
            return need(name, not lacking, f"no tasks of {', '.join(lacking)} in {domains}" if lacking else str(domains), hint)
    return Check(name=name, state="missing", detail=f"no data folder beside {root}", hint=hint)


def check_ray() -> Check:
    """Ray itself."""
    return check_module("ray", needed=True, hint="pip install 'ray[default]', or run with `--inline`")


def check_job_server() -> Check:
    """What `ray[default]` adds to `ray`: without it there is no job server to submit to."""
    absent = [module for module in JOB_SERVER_MODULES if not importable(module)]
    detail = f"not importable: {', '.join(absent)}" if absent else "all parts of ray[default] are there"
    return need("ray job server", not absent, detail, "pip install 'ray[default]'")


def check_module(name: str, *, needed: bool, hint: str) -> Check:
    """Whether a module could be imported, and its version, without importing it."""
    if not importable(name):
        return Check(name=name, state="missing" if needed else "optional", detail="not installed", hint=hint)
    # By name, since a look through every distribution for the owner of a module takes a second.
    try:
        version = importlib.metadata.version(DISTRIBUTIONS.get(name, name))
    except importlib.metadata.PackageNotFoundError:  # on the path, but not installed by pip
        version = "importable, of unknown version"
    return Check(name=name, state="ok", detail=version)
