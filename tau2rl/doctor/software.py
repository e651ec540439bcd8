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
# What tau2 reads of a domain (tau2/domains/*/utils.py, environment.py).
_FILES = ("db.json", "policy.md", "tasks.json", "split_tasks.json")
DOMAIN_FILES: dict[str, tuple[str, ...]] = {
    "telecom": ("db.toml", "user_db.toml", "main_policy.md", "tech_support_manual.md", "tasks.json", "split_tasks.json")
}
NAMED = 4  # missing files that are named
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
    """Every data file of every domain, beside the package or where an official checkout keeps them; what is missing is named."""
    name, hint = "tau2-bench data", f"install it again: {package.INSTALL}"
    spec = importlib.util.find_spec("tau2")
    if spec is None or not spec.submodule_search_locations:
        return Check(name=name, state="missing", detail="there is no tau2-bench that could have it", hint=package.INSTALL)
    root = Path(next(iter(spec.submodule_search_locations)))
    for folder in (root / "data", root.parent / "data", root.parent.parent / "data"):
        domains = folder / "tau2" / "domains"
        if domains.is_dir():
            lacking = _lacking(domains)
            shown = ", ".join(lacking[:NAMED]) + (f" and {len(lacking) - NAMED} more" if len(lacking) > NAMED else "")
            return need(name, not lacking, f"missing or empty in {domains}: {shown}" if lacking else str(domains), hint)
    return Check(name=name, state="missing", detail=f"no data folder beside {root}", hint=hint)


def _lacking(domains: Path) -> list[str]:
    """`telecom/user_db.toml` and the like: what tau2 would read below the folder and cannot."""
    names = [f"{domain}/{file}" for domain in DOMAINS for file in DOMAIN_FILES.get(domain, _FILES)]
    return [name for name in names if not (domains / name).is_file() or not (domains / name).stat().st_size]


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
