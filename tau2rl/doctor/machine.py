"""What this machine has: GPUs, memory, disk and ports, and what is installed on it. Imports nothing heavy to find out."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from tau2rl import settings
from tau2rl.config import DOMAINS
from tau2rl.config.extras import importable, pip_install
from tau2rl.doctor.services import CheckResult, State, connects, need
from tau2rl.env import package
from tau2rl.errors import UserError

GIB = 1024**3
SHARED_MEMORY_GIB = 1  # below it Ray keeps its object store on disk
PORTS = {8265: "Ray's job server", 30000: "SGLang"}
# What Ray's job server imports (ray/dashboard/optional_deps.py); plain `pip install ray` leaves these out.
JOB_SERVER_MODULES = ("aiohttp", "aiohttp_cors", "grpc", "opencensus", "opentelemetry", "prometheus_client")
# What tau2 reads of a domain (tau2/domains/*/utils.py, environment.py).
RAY = "'ray[default]'"
_FILES = ("db.json", "policy.md", "tasks.json", "split_tasks.json")
DOMAIN_FILES: dict[str, tuple[str, ...]] = {
    "telecom": ("db.toml", "user_db.toml", "main_policy.md", "tech_support_manual.md", "tasks.json", "split_tasks.json")
}
NAMED = 4  # missing files that are named
DISTRIBUTIONS = {"megatron": "megatron-core"}  # where it is not the module's own name


def check_gpu(*, needed: bool) -> CheckResult:
    """What `nvidia-smi` sees, and whether torch can use it."""
    absent: State = "missing" if needed else "optional"
    command = shutil.which("nvidia-smi")
    if command is None:
        return CheckResult(
            name="gpu",
            state=absent,
            detail="no nvidia-smi on the path",
            hint="a training with slime needs NVIDIA GPUs, and so does `local.device` cuda; `cpu` does without" if needed else "",
        )
    try:
        listing = subprocess.run(
            [command, "--query-gpu=name,memory.total", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return CheckResult(name="gpu", state=absent, detail=f"nvidia-smi does not answer: {error}", hint="look at the driver")
    gpus = [line.strip() for line in listing.stdout.splitlines() if line.strip()]
    if listing.returncode or not gpus:
        return CheckResult(
            name="gpu", state=absent, detail="nvidia-smi sees no GPU", hint="look at the driver, or at the container's `--gpus`"
        )
    if not importable("torch"):
        return CheckResult(
            name="gpu", state=absent, detail=f"{len(gpus)} x {gpus[0]}, but no torch to use it", hint=pip_install("torch")
        )
    import torch

    usable = torch.cuda.is_available()
    return CheckResult(
        name="gpu",
        state="ok" if usable else absent,
        detail=f"{len(gpus)} x {gpus[0]}, CUDA {torch.version.cuda}"
        if usable
        else f"{gpus[0]} is there, torch {torch.__version__} cannot use it",
        hint="" if usable else "install a CUDA build of torch that fits the driver",
    )


def check_cores() -> CheckResult:
    """Cores that this process may use."""
    return CheckResult(name="cpu", state="ok", detail=f"{settings.available_cores()} cores")


def check_memory(needed_gib: int) -> CheckResult:
    """Memory that is free now."""
    free = _available_memory()
    if free is None:
        return CheckResult(name="memory", state="ok", detail="this system does not say")
    return need(
        "memory",
        free >= needed_gib * GIB,
        f"{free / GIB:.1f} GiB available, {needed_gib} GiB wanted",
        "free some, or lower `--concurrency`",
    )


def check_disk(needed_gib: int) -> CheckResult:
    """Room where run folders go."""
    folder = settings.output_root().absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    hint = f"free some, or name another place in {settings.OUTPUT_ROOT}"
    return need("disk", free >= needed_gib * GIB, f"{free / GIB:.0f} GiB free in {folder}, {needed_gib} GiB wanted", hint)


def check_shared_memory(training: bool) -> CheckResult:
    """`/dev/shm`, where Ray and NCCL keep what processes share."""
    path = Path("/dev", "shm")
    if not path.is_dir():
        return CheckResult(name="shared memory", state="ok", detail="no /dev/shm on this system")
    total = shutil.disk_usage(path).total
    state: State = "ok" if total >= SHARED_MEMORY_GIB * GIB else "missing" if training else "optional"
    return CheckResult(
        name="shared memory",
        state=state,
        detail=f"{path} {total / GIB:.1f} GiB",
        hint="" if state == "ok" else "docker run --shm-size=16g",
    )


def check_ports() -> CheckResult:
    """Whether this process may listen on loopback, and who holds the usual ports."""
    try:
        with socket.create_server(("127.0.0.1", 0)):
            pass
    except OSError as error:
        return CheckResult(
            name="ports",
            state="missing",
            detail=f"cannot listen on 127.0.0.1: {error.strerror}",
            hint="a local Ray head needs loopback",
        )
    held = [f"{port} ({whose})" for port, whose in PORTS.items() if connects(f"127.0.0.1:{port}", default_port=port)]
    return CheckResult(
        name="ports",
        state="ok",
        detail="loopback is open; " + (f"in use: {', '.join(held)}" if held else "the usual ports are free"),
    )


def _available_memory() -> int | None:
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    for line in meminfo.read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def check_python() -> CheckResult:
    """The interpreter's version."""
    detail = f"{platform.python_version()} at {sys.executable}"
    return need("python", sys.version_info >= (3, 11), detail, "tau2rl needs Python 3.11 or newer")


def check_tau2() -> CheckResult:
    """The distribution behind the import name `tau2`; the unrelated chemistry package is refused."""
    try:
        found = package.installed()
    except UserError as error:
        return CheckResult(name="tau2-bench", state="missing", detail=error.message, hint=error.hint)
    return CheckResult(name="tau2-bench", state="ok", detail=f"{found.distribution} {found.version}")


def check_tau2_data() -> CheckResult:
    """Every data file of every domain, beside the package or where an official checkout keeps them; what is missing is named."""
    name, hint = "tau2-bench data", f"install it again: {package.INSTALL}"
    spec = importlib.util.find_spec("tau2")
    if spec is None or not spec.submodule_search_locations:
        return CheckResult(name=name, state="missing", detail="there is no tau2-bench that could have it", hint=package.INSTALL)
    root = Path(next(iter(spec.submodule_search_locations)))
    for folder in (root / "data", root.parent / "data", root.parent.parent / "data"):
        domains = folder / "tau2" / "domains"
        if domains.is_dir():
            lacking = _lacking(domains)
            shown = ", ".join(lacking[:NAMED]) + (f" and {len(lacking) - NAMED} more" if len(lacking) > NAMED else "")
            return need(name, not lacking, f"missing or empty in {domains}: {shown}" if lacking else str(domains), hint)
    return CheckResult(name=name, state="missing", detail=f"no data folder beside {root}", hint=hint)


def _lacking(domains: Path) -> list[str]:
    """`telecom/user_db.toml` and the like: what tau2 would read below the folder and cannot."""
    names = [f"{domain}/{file}" for domain in DOMAINS for file in DOMAIN_FILES.get(domain, _FILES)]
    return [name for name in names if not (domains / name).is_file() or not (domains / name).stat().st_size]


def check_ray() -> CheckResult:
    """Ray itself."""
    return check_module("ray", needed=True, hint=f"{pip_install(RAY)}, or run with `--inline`")


def check_job_server() -> CheckResult:
    """What `ray[default]` adds to `ray`: without it there is no job server to submit to."""
    absent = [module for module in JOB_SERVER_MODULES if not importable(module)]
    detail = f"not importable: {', '.join(absent)}" if absent else "all parts of ray[default] are there"
    return need("ray job server", not absent, detail, pip_install(RAY))


def check_module(name: str, *, needed: bool, hint: str) -> CheckResult:
    """Whether a module could be imported, and its version, without importing it."""
    if not importable(name):
        return CheckResult(name=name, state="missing" if needed else "optional", detail="not installed", hint=hint)
    # By name, since a look through every distribution for the owner of a module takes a second.
    try:
        version = importlib.metadata.version(DISTRIBUTIONS.get(name, name))
    except importlib.metadata.PackageNotFoundError:  # on the path, but not installed by pip
        version = "importable, of unknown version"
    return CheckResult(name=name, state="ok", detail=version)
