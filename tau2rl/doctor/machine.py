"""What the machine is made of: GPU, cores, memory, disk, ports."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path

from tau2rl import settings
from tau2rl.doctor.check import Check, State, importable, need
from tau2rl.doctor.probe import connects

GIB = 1024**3
SHARED_MEMORY_GIB = 1  # below it Ray keeps its object store on disk
PORTS = {8265: "Ray's job server", 30000: "SGLang"}


def check_gpu(*, needed: bool) -> Check:
    """What `nvidia-smi` sees, and whether torch can use it."""
    absent: State = "missing" if needed else "optional"
    command = shutil.which("nvidia-smi")
    if command is None:
        return Check(
            name="gpu",
            state=absent,
            detail="no nvidia-smi on the path",
            hint="training with slime needs NVIDIA GPUs" if needed else "",
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
        return Check(name="gpu", state=absent, detail=f"nvidia-smi does not answer: {error}", hint="look at the driver")
    gpus = [line.strip() for line in listing.stdout.splitlines() if line.strip()]
    if listing.returncode or not gpus:
        return Check(
            name="gpu", state=absent, detail="nvidia-smi sees no GPU", hint="look at the driver, or at the container's `--gpus`"
        )
    if not importable("torch"):
        return Check(
            name="gpu", state=absent, detail=f"{len(gpus)} x {gpus[0]}, but no torch to use it", hint="pip install torch"
        )
    import torch

    usable = torch.cuda.is_available()
    return Check(
        name="gpu",
        state="ok" if usable else absent,
        detail=f"{len(gpus)} x {gpus[0]}, CUDA {torch.version.cuda}"
        if usable
        else f"{gpus[0]} is there, torch {torch.__version__} cannot use it",
        hint="" if usable else "install a CUDA build of torch that fits the driver",
    )


def check_cores() -> Check:
    """Cores that this process may use."""
    return Check(name="cpu", state="ok", detail=f"{settings.available_cores()} cores")


def check_memory(needed_gib: int) -> Check:
    """Memory that is free now."""
    free = _available_memory()
    if free is None:
        return Check(name="memory", state="ok", detail="this system does not say")
    return need(
        "memory",
        free >= needed_gib * GIB,
        f"{free / GIB:.1f} GiB available, {needed_gib} GiB wanted",
        "free some, or lower `--concurrency`",
    )


def check_disk(needed_gib: int) -> Check:
    """Room where run folders go."""
    folder = settings.output_root().absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    hint = f"free some, or name another place in {settings.OUTPUT_ROOT}"
    return need("disk", free >= needed_gib * GIB, f"{free / GIB:.0f} GiB free in {folder}, {needed_gib} GiB wanted", hint)


def check_shared_memory(training: bool) -> Check:
    """`/dev/shm`, where Ray and NCCL keep what processes share."""
    path = Path("/dev", "shm")
    if not path.is_dir():
        return Check(name="shared memory", state="ok", detail="no /dev/shm on this system")
    total = shutil.disk_usage(path).total
    state: State = "ok" if total >= SHARED_MEMORY_GIB * GIB else "missing" if training else "optional"
    return Check(
        name="shared memory",
        state=state,
        detail=f"{path} {total / GIB:.1f} GiB",
        hint="" if state == "ok" else "docker run --shm-size=16g",
    )


def check_ports() -> Check:
    """Whether this process may listen on loopback, and who holds the usual ports."""
    try:
        with socket.create_server(("127.0.0.1", 0)):
            pass
    except OSError as error:
        return Check(
            name="ports",
            state="missing",
            detail=f"cannot listen on 127.0.0.1: {error.strerror}",
            hint="a local Ray head needs loopback",
        )
    held = [f"{port} ({whose})" for port, whose in PORTS.items() if connects(f"127.0.0.1:{port}", default_port=port)]
    return Check(
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
