"""A run at one moment, for `tau2rl top`: state, progress, success, servers, GPUs, curves, alarms, last conversations, warnings.

All of it is read: from the run folder, from the policy's and the user's servers while the run goes on, and from `nvidia-smi`.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tau2rl.errors import UserError
from tau2rl.policy.sglang_load import LoadReader, ServerLoad
from tau2rl.report.estimators import mean_over_tasks
from tau2rl.report.tables import quantity
from tau2rl.runs.files import read_json, section
from tau2rl.runs.folder import read_config
from tau2rl.runs.progress import ProgressEvent, read_progress
from tau2rl.runs.sessions import is_open, session_folders
from tau2rl.runs.timing import FILE as TIMING
from tau2rl.terminal import visible
from tau2rl.view.index import Index, Query, record_files
from tau2rl.view.runs import curves, run_summary, stages

Json = dict[str, Any]
State = Literal["running", "finished", "incomplete", "cut off", "not begun"]  # `cut off`: its process was killed
ALARM = "alarm/"  # before the name of an alarm, in the curves
SHOWN = (  # curves that say how a training goes, those of either backend; the ones that a run has
    "success", "reward/mean", "score/mean", "val/pass@1", "loss", "val_loss", "train/loss", "train/entropy", "train/kl",
    "mismatch/mean_abs", "groups/useful", "turns/mean",
)  # fmt: skip
LAST_BYTES = 1 << 16  # of a log, in which the last warnings are looked for
WARNINGS = 3
LONGEST_WARNING = 240
GPU_SECONDS = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One of this machine: `Gpu(name="0", busy=93, used=61_200, total=81_559)`."""

    name: str
    busy: int  # percent
    used: int  # MiB
    total: int  # MiB


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A run of a pipeline: `Stage(name="02-sft", state="finished", says="validation loss 1.2 -> 0.4")`."""

    name: str
    state: str
    says: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What is known of a run now. Texts from records and logs are `visible`."""

    run: Path
    name: str
    stage: str
    state: State
    progress: ProgressEvent | None = None  # the last that its last session said
    pass_1: Mapping[str, Any] | None = None  # {"value", "ci95"}
    counts: str = ""  # what `pass_1` is of
    floor: float | None = None
    reading: float = 1.0  # share of the records that the index has read
    pipeline: list[Stage] = field(default_factory=list[Stage])
    servers: dict[str, ServerLoad | None] = field(default_factory=dict[str, "ServerLoad | None"])  # who -> load; None: no answer
    gpus: list[Gpu] = field(default_factory=list[Gpu])
    curves: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    alarms: dict[str, int] = field(default_factory=dict[str, int])  # name -> the first step that raised it
    episodes: list[Json] = field(default_factory=list[Json])  # rows of the index, the last first
    warnings: list[str] = field(default_factory=list[str])


class Watch:
    """Looks at a run again and again; of a pipeline at the run that it is at. Close it."""

    def __init__(self, run: Path, *, episodes: int) -> None:
        """`episodes`: how many of the last ones a frame has. Raises UserError for a folder that is no run's."""
        self._run, self._episodes = run, episodes
        self._config = read_json(run / "config.json") if (run / "config.json").is_file() else {}
        if not self._config:
            raise UserError(f"`{run}` is not a run folder", hint="name a folder such as `outputs/eval/default`")
        self._at: Path | None = None
        self._lock = asyncio.Lock()
        self.index: Index | None = None  # of the run that is looked at, once it has records
        self._readers: dict[str, LoadReader] = {}

    async def frame(self, *, seconds: float = 1.0) -> Frame:
        """The run now. `seconds`: how long records may be read that the index does not have yet."""
        async with self._lock:
            return await self._poll(seconds)

    async def aclose(self) -> None:
        """Let go of the index and the connections, behind a look that goes on; safe to call twice."""
        async with self._lock:
            await self._let_go()

    async def _poll(self, seconds: float) -> Frame:
        run = followed(self._run)
        if run != self._at:
            await self._let_go()
            self._at = run
        state = state_of(run)
        read, servers, found = await asyncio.gather(
            asyncio.to_thread(self._read, run, seconds),
            self._loads(run) if state == "running" else _none(),
            asyncio.to_thread(gpus),
        )
        numbers = curves(run)
        about = run_summary(run)
        return Frame(
            run=run, name=about["name"], stage=about["stage"], state=state, progress=read_progress(run),
            floor=(about["headline"] or {}).get("floor"),
            pipeline=[_stage(folder) for folder in stages(self._run)],
            servers=servers, gpus=found,
            curves={name: [value for _, value in numbers[name]] for name in SHOWN if name in numbers},
            alarms={
                name.removeprefix(ALARM): int(min(step for step, value in points if value))
                for name, points in numbers.items() if name.startswith(ALARM) and any(value for _, value in points)
            },
            warnings=last_warnings(run), **read,
        )  # fmt: skip

    async def _let_go(self) -> None:
        if self.index is not None:
            self.index.close()
        for reader in self._readers.values():
            await reader.aclose()
        self.index, self._readers, self._at = None, {}, None

    def _read(self, run: Path, seconds: float) -> Json:
        """What the records say: pass@1 so far of the run's own attempts, and the last episodes, validations' too."""
        if self.index is None and any(file.exists() and file.stat().st_size for file in record_files(run)):
            self.index = Index(run)
        if self.index is None:
            return {}
        self.index.update(seconds=seconds)
        done, size = self.index.progress()
        tasks = self.index.task_counts()
        attempts, solved = sum(row["valid"] for row in tasks), sum(row["solved"] for row in tasks)
        rate = mean_over_tasks([row["solved"] / row["valid"] for row in tasks], trials=max(1.0, attempts / max(1, len(tasks))))
        rows = self.index.page(Query(sort="order", descending=True, limit=self._episodes)).rows
        return {
            "pass_1": rate.to_json() if tasks else None,
            "counts": f"{solved} of {quantity(attempts, 'attempt')} at {quantity(len(tasks), 'task')}",
            "reading": min(1.0, done / size) if size else 1.0,
            "episodes": [{**row, "key": short_key(visible(row["key"]))} for row in rows],
        }

    async def _loads(self, run: Path) -> dict[str, ServerLoad | None]:
        for who, url in servers_of(run).items():
            if who not in self._readers:
                self._readers[who] = LoadReader(url)
        loads = dict(zip(self._readers, await asyncio.gather(*(reader.read() for reader in self._readers.values())), strict=True))
        for who in [who for who, load in loads.items() if load is None]:  # a reader gives up; the server may be there later
            await self._readers.pop(who).aclose()
        return loads


async def _none() -> dict[str, ServerLoad | None]:
    return {}


def followed(run: Path) -> Path:
    """Of a pipeline the run that was begun last, of any other run itself."""
    return (stages(run) or [run])[-1]


def state_of(run: Path) -> State:
    """Whether a process has the run open; else how its last session ended."""
    if is_open(run):
        return "running"
    if run_summary(run)["state"] == "done":
        return "finished"
    folders = session_folders(run)
    if not folders:
        return "incomplete" if any(file.exists() for file in record_files(run)) else "not begun"
    timing = folders[max(folders)] / TIMING
    try:
        return "cut off" if timing.exists() and read_json(timing).get("seconds") is None else "incomplete"
    except UserError:
        return "cut off"


def servers_of(run: Path) -> dict[str, str]:
    """Who -> the address of its server, where the settings name one that could tell its load: SGLang's, or one of one's own."""
    try:
        config = read_config(run)
    except UserError:
        return {}
    policy, user = getattr(config, "policy", None), getattr(config, "user", None)
    found = {
        "policy": getattr(policy, "url", None) if getattr(policy, "kind", "") == "sglang" else getattr(policy, "api_base", None),
        "user": getattr(user, "api_base", None) if getattr(user, "kind", "") == "llm" else None,
    }
    return {who: str(url).rstrip("/").removesuffix("/v1") for who, url in found.items() if url}


def gpus() -> list[Gpu]:
    """Those of this machine; [] where there are none, or `nvidia-smi` does not answer."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    query = [command, "--query-gpu=index,utilization.gpu,memory.used,memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=GPU_SECONDS, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [gpu for line in said.splitlines() if (gpu := read_gpu(line)) is not None]


def read_gpu(line: str) -> Gpu | None:
    """A line of `nvidia-smi`; None for one without numbers, as of a GPU in parts.

    >>> read_gpu("0, 93, 61200, 81559"), read_gpu("1, [N/A], 12, 81559")
    (Gpu(name='0', busy=93, used=61200, total=81559), None)
    """
    parts = [part.strip() for part in line.split(",")]
    if len(parts) != 4 or not all(part.isdigit() for part in parts):
        return None
    return Gpu(name=parts[0], busy=int(parts[1]), used=int(parts[2]), total=int(parts[3]))


def last_warnings(run: Path) -> list[str]:
    """The last warnings and errors in the log of the last session."""
    folders = session_folders(run)
    file = folders[max(folders)] / "job.log" if folders else run / "job.log"
    if not file.is_file():
        return []
    with file.open("rb") as log:
        log.seek(max(0, file.stat().st_size - LAST_BYTES))
        lines = log.read().decode("utf-8", "replace").splitlines()
    told = [line for line in lines if line[:1].isdigit() and line.split(" ", 2)[1:2] in (["WARNING"], ["ERROR"])]
    return [visible(line, LONGEST_WARNING).replace("\n", " ") for line in told[-WARNINGS:]]


def _stage(run: Path) -> Stage:
    about = run_summary(run)
    value = section(about, "headline", "pass@1").get("value")
    return Stage(name=run.name, state=state_of(run), says=about["says"] if value is None else f"pass@1 {value:.3f}")


def short_key(key: str, longest: int = 60) -> str:
    """An attempt's key in one line, in which the middle of a long one is left out: its end tells attempts apart.

    >>> short_key("retail/5#0"), short_key("telecom/[mms_issue]airplane_mode_on|bad_vpn#3", 20)
    ('retail/5#0', 'telecom/[…bad_vpn#3')
    """
    if len(key) <= longest:
        return key
    half = (longest - 1) // 2
    return f"{key[:half]}…{key[-half:]}"
