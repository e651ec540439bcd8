"""How long `tau2rl view` takes for a run of many episodes that is still being written, and how much memory.

    python scripts/benchmarks/view.py outputs/eval/default 100000

The run's own records, over and over under new task names, in a temporary folder; the last line is cut until everything is read,
and a line is appended a second meanwhile. Prints seconds of the first page, of the slowest and of a search, of the reading of all
records, and megabytes: of the records, of the index, and the most that the server held.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen


def main(source: Path, episodes: int) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "run"
        run.mkdir()
        shutil.copy(source / "config.json", run)
        records = [json.loads(line) for line in (source / "episodes.jsonl").read_bytes().splitlines()]
        with (run / "episodes.jsonl").open("wb") as file:
            for number in range(episodes):
                file.write(line_of(records[number % len(records)], number))
            file.write(b'{"schema":2,"attempt":')  # cut by a kill
        command = [sys.executable, "-m", "tau2rl", "view", str(run)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                print(json.dumps(measured(server.stdout.readline().strip(), server.pid, run, records)))
            finally:
                server.terminate()


def line_of(record: dict[str, Any], number: int) -> bytes:
    """The record as that of another task."""
    task = {**record["attempt"]["task"], "task_id": f"t{number}"}
    return json.dumps({**record, "attempt": {**record["attempt"], "task": task}}, separators=(",", ":")).encode() + b"\n"


def measured(address: str, pid: int, run: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Pages until all is read, while lines come in."""

    def get(path: str) -> Any:
        with urlopen(f"{address}api/{path}") as answer:  # noqa: S310 - loopback
            return json.load(answer)

    (found,) = get("runs")
    began, seconds, appended = time.monotonic(), list[float](), 0
    while True:
        asked = time.monotonic()
        page = get(f"runs/{found['id']}/episodes?limit=50")
        seconds.append(time.monotonic() - asked)
        read = get(f"version?runs={found['id']}")
        if read["size"] - read["indexed"] < 100:  # the cut line stays
            break
        if time.monotonic() - began > appended:
            with (run / "episodes.jsonl").open("r+b") as file:  # as a session that goes on cuts a torn line off first
                end = file.seek(-22, 2)
                file.truncate(end)
                file.write(line_of(records[0], -1 - appended) + b'{"schema":2,"attempt":')
            appended += 1
        time.sleep(0.2)
    whole = time.monotonic() - began
    asked = time.monotonic()
    get(f"runs/{found['id']}/episodes?limit=50&text=the&sort=turns&descending=1&offset=50000")
    search = time.monotonic() - asked
    page = get(f"runs/{found['id']}/episodes?limit=1")
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    most = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    return {
        "episodes": page["total"],
        "appended": appended,
        "first_page": round(seconds[0], 2),
        "slowest_page": round(max(seconds), 2),
        "search": round(search, 2),
        "all_read": round(whole, 1),
        "records_mb": round((run / "episodes.jsonl").stat().st_size / 1e6),
        "index_mb": round((run / "index.sqlite").stat().st_size / 1e6),
        "server_mb": round(most),
    }


if __name__ == "__main__":
    if sys.argv[1:] in (["-h"], ["--help"]):
        print(__doc__)
        sys.exit()
    main(Path(sys.argv[1]), int(sys.argv[2]))
