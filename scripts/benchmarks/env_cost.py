"""What an episode costs beside tokens: CPU time and memory of the environment, ours against the untouched package.

    python scripts/benchmarks/env_cost.py [--domains airline retail telecom mock] [--episodes 4] [--repeat 5]

Each episode is a reset, 20 steps and the grading, with the same actions on both sides: the task's reference actions, then
look-ups of other tasks' reference actions. The policy and the user answer at once. Each side runs in a fresh process and
one episode at a time; CPU is that of the whole process (`time.process_time`), so it means something on a busy machine too.
Printed is how many times cheaper ours is: all of it, then each phase; milliseconds; the share of the tool functions alone in
our time, which is the limit; and the same for the resident memory of a live episode after 5 steps (50 of ours, 5 of theirs).
`same` counts the episodes in which both sides have the same messages, verdicts and database hashes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PLAY = Path(__file__).with_name("env_play.py")
TURNS = 20
LIVE = {"ours": 50, "tau2": 5}


def specs_of(name: str, count: int) -> list[dict[str, Any]]:
    """The first `count` tasks of the test split, each with 20 turns of the agent and the calls of the user."""
    from tau2rl.env.domain import domain
    from tau2rl.env.tasks import gold_actions

    loaded = domain(name)
    tasks = loaded.tasks("test" if "test" in loaded.splits() else "base")
    lookups = [
        (action.name, action.arguments)
        for task in tasks.values()
        for action in gold_actions(task)
        if action.requestor == "assistant" and loaded.tool_types.get(action.name) == "read"
    ]
    specs: list[dict[str, Any]] = []
    for task in itertools.islice(tasks.values(), count):
        actions = gold_actions(task)
        turns = ["One moment." if a.requestor == "user" else (a.name, a.arguments) for a in actions[: TURNS - 1]]
        padding = itertools.cycle(["Let me see.", *lookups[len(specs) :], *lookups[: len(specs)]] if lookups else ["Let me see."])
        turns += itertools.islice(padding, TURNS - len(turns))
        users = [(a.name, a.arguments) for a in actions[: TURNS - 1] if a.requestor == "user"]
        specs.append({"domain": name, "task_id": task.id, "turns": turns, "user_calls": users})
    return specs


def run(side: str, specs: list[dict[str, Any]], *, live: int = 0) -> dict[str, Any]:
    """The figures of one side, from a fresh process."""
    job = json.dumps({"specs": specs, "live": live, "turns": 5})
    done = subprocess.run([sys.executable, PLAY, side], input=job, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def mean(rows: list[dict[str, Any]], phase: str) -> float:
    """Milliseconds."""
    return 1000 * sum(row[phase] for row in rows) / len(rows)


def measure(name: str, episodes: int, repeat: int) -> dict[str, str]:
    """One line of the table."""
    specs = specs_of(name, episodes)
    theirs, ours = run("tau2", specs)["rows"], run("ours", specs * repeat)["rows"]
    tools = 1000 * sum(times := run("tools", specs)["tools"]) / len(times)
    memory = {side: run(side, specs, live=live)["memory"] for side, live in LIVE.items()}
    for rows in (theirs, ours):
        for row in rows:
            row["all"] = sum(row[phase] for phase in ("construct", "steps", "grade"))
    cpu = {p: (mean(theirs, p), mean(ours, p)) for p in ("all", "construct", "steps", "grade")}
    same = sum(row["outcome"] == theirs[i % len(theirs)]["outcome"] for i, row in enumerate(ours))
    return {
        "domain": name,
        "CPU": f"{cpu['all'][0] / cpu['all'][1]:.0f}x",
        **{phase: f"{cpu[phase][0] / cpu[phase][1]:.0f}x" for phase in ("construct", "steps", "grade")},
        "ms, tau2": f"{cpu['all'][0]:.0f}",
        "ms, ours": " + ".join(f"{cpu[phase][1]:.1f}" for phase in ("construct", "steps", "grade")),
        "tools": f"{tools / cpu['all'][1]:.0%} ({tools:.2f} ms)",
        "memory": f"{memory['tau2'] / memory['ours']:.0f}x",
        "KiB, ours": f"{memory['ours']:.0f}",
        "same": f"{same}/{len(ours)}",
    }


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domains", nargs="+", default=["airline", "retail", "telecom", "mock"])
    parser.add_argument("--episodes", type=int, default=4, help="tasks a domain")
    parser.add_argument("--repeat", type=int, default=5, help="times that our side plays each")
    arguments = parser.parse_args()
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", file=sys.stderr)
    lines = []
    for name in arguments.domains:
        lines.append(measure(name, arguments.episodes, arguments.repeat))
        print(f"{name} done", file=sys.stderr)
    print("| " + " | ".join(lines[0]) + " |")
    print("|" + " --- |" * len(lines[0]))
    for line in lines:
        print("| " + " | ".join(line.values()) + " |")


if __name__ == "__main__":
    main()
