"""How fast the filter is, and how much memory it takes: `python scripts/benchmarks/rft.py --records 1000000`.

Makes an `episodes.jsonl` of so many records (one real conversation of the `mock` domain, under as many names), filters it as
`tau2rl rft-filter --from` does, report included, and prints records a second and the peak of the resident memory. The peak
does not grow with the number of records.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

from tau2rl.config import RftConfig, build
from tau2rl.data.rollout_filter import RolloutFilter
from tau2rl.recipes.dataset import scan, write_dataset
from tau2rl.recipes.rft import source_of
from tau2rl.recipes.seed import run
from tau2rl.reward.presets import spec_from
from tau2rl.runs.folder import RunFolder

ATTEMPTS = 8  # of a task; one in four is a success


def example(folder: Path) -> bytes:
    """A run folder with one real episode, and that episode's line."""
    from tau2rl.config import SeedConfig

    tasks = {"domains": ["mock"], "split": "synth-train", "limit": 1}
    config = build(SeedConfig, {"tasks": tasks, "output": str(folder)})
    RunFolder.create(folder, config, resume=False)
    with RunFolder.open(folder) as opened:
        run(config, opened, lambda _: None)
    return (folder / "episodes.jsonl").read_bytes()


def multiply(line: bytes, path: Path, count: int) -> None:
    """Write the episode `count` times, under the names of attempts at tasks of the training pool."""
    from tau2rl.env.synth import SIZES, task_id

    record = json.loads(line)
    size = SIZES["synth-train"]
    ids = [task_id("synth-train", number) for number in range(size)]
    with path.open("wb") as file:
        for number in range(count):
            index, place = divmod(number, size)
            task = {**record["attempt"]["task"], "task_id": ids[place]}
            record["attempt"].update(task=task, index=index)
            record["episode"].update(task=task)
            record["episode"]["grade"]["reward"] = 1.0 if (number // size) % 4 == 0 else 0.0
            file.write(json.dumps(record).encode() + b"\n")


def main() -> None:
    """Make, filter, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="where the records go (default: a temporary folder)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name) / "run"
        multiply(example(folder), folder / "episodes.jsonl", arguments.records)
        size = (folder / "episodes.jsonl").stat().st_size
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started, cpu = time.monotonic(), time.process_time()
        config = RftConfig(sources=(folder,))
        with RolloutFilter() as rollouts:
            spec = spec_from(config.reward, max_turns=config.limits.max_turns)
            source = source_of(folder)
            seen = scan([source], rollouts, spec=spec, seed=config.seed, progress=lambda _: None)
            rollouts.apply(config.keep)
            of_run = {"digest": source.digest, "planned": None, "meter": None}
            files = write_dataset("rft-filter", folder, "sft.jsonl", [source], rollouts, seen, **of_run)["files"]
        seconds, cpu = time.monotonic() - started, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {
        "records": arguments.records,
        "megabytes": round(size / 1e6, 1),
        "kept": files["sft.jsonl"]["rows"],
        "seconds": round(seconds, 1),
        "records_per_second": round(arguments.records / seconds),
        "records_per_cpu_second": round(arguments.records / cpu),
        "peak_rss_mib": round(peak / 1024, 1),  # Linux counts in KiB
        "peak_rss_before_mib": round(before / 1024, 1),
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
