"""Grade again with the official tau2-bench at the commit whose numbers are published, in a process that has nothing of tau2rl.

    .venv/bin/python scripts/grade_official.py CHECKOUT data/retail-1 outputs/eval/gold

CHECKOUT is a git directory or work tree of sierra-research/tau2-bench that has the commit. Each further path is a folder that
`tau2rl synth` made, whose reference paths, do-nothing and always-transfer are carried out and graded, or the folder of a run,
whose conversations are. Compared are rewards and, of made tasks, the hashes of the databases with those in `proofs.jsonl`.
A file of data that the git directory lacks (a partial clone) is taken from the installed tau2 where it is the same blob.
Exits with 1 where anything differs, and prints JSON: what was graded, and what differs.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COMMIT = "337326e62d8e0ca74c353b004a9c5d748e0ba914"
WANTED = (
    "src/tau2",
    "data/tau2/domains/airline",
    "data/tau2/domains/retail",
    "data/tau2/domains/telecom",
    "data/tau2/user_simulator",
)
TRANSFER = {"requestor": "assistant", "name": "transfer_to_human_agents", "arguments": {"summary": "I cannot help."}}
SOLVED = 1.0 - 1e-6
Json = dict[str, Any]


def main() -> None:
    """Compare every path; exit with 1 where the official grader says otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("paths", type=Path, nargs="+")
    parser.add_argument("--limit", type=int, help="at most so many tasks or conversations of a path")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tree, borrowed = Path(folder) / "tau2-bench", list[str]()
        extract(asked.checkout, tree, borrowed)
        said = {str(path): compared(list(items_of(path, asked.limit)), tree) for path in asked.paths}
    print(json.dumps({"commit": COMMIT, "data_from_the_installed_tau2": borrowed, "graded": said}, indent=2))
    sys.exit(any(found["different"] for found in said.values()))


def extract(checkout: Path, tree: Path, borrowed: list[str]) -> None:
    """Write the files of the commit that grading needs to `tree`. Exits where one is nowhere to be had."""
    listed = _git(checkout, "ls-tree", "-r", COMMIT, "--", *WANTED).stdout.decode().splitlines()
    if not listed:
        sys.exit(f"commit {COMMIT} is not in {checkout}")
    for line in listed:
        about, _, name = line.partition("\t")
        blob, target = about.split()[2], tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        found = _git(checkout, "cat-file", "blob", blob)
        content = found.stdout
        if found.returncode:
            content = installed_file(name)
            if hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() != blob:
                if name.endswith((".pdf", ".png")):
                    continue  # drawings
                sys.exit(f"{name} is neither in {checkout} nor the same in the installed tau2")
            borrowed.append(name)
        target.write_bytes(content)


def _git(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["git", "-C", str(checkout), *arguments], capture_output=True, check=False)


def installed_file(name: str) -> bytes:
    """A file of data as the installed tau2 has it; empty where it has none."""
    from tau2rl.env import quiet_tau2  # noqa: F401 - before tau2

    from tau2.utils.utils import DATA_DIR

    file = DATA_DIR / name.removeprefix("data/")
    return file.read_bytes() if file.exists() else b""


def items_of(path: Path, limit: int | None) -> Iterator[Json]:
    """What is to be graded, each with what we say of it: `{"id", "domain", "task", "actions" | "messages", "reward", "hash"}`."""
    if not (path / "proofs.jsonl").exists():
        yield from _played(path, limit)
        return
    domain = json.loads((path / "card.json").read_text("utf-8"))["domain"]
    tasks = json.loads((path / "tasks.json").read_text("utf-8"))[:limit]
    for task, line in zip(tasks, (path / "proofs.jsonl").read_text("utf-8").splitlines(), strict=False):
        proof = json.loads(line)
        criteria, item = task["evaluation_criteria"], {"domain": domain, "task": task}
        actions = [{"requestor": "assistant", **action} for action in criteria["actions"]]
        told = f"That is done. {'; '.join(criteria['communicate_info'])}"
        gold = {"actions": actions, "say": told, "reward": proof["rewards"]["gold"], "hash": proof["gold_hash"]}
        yield {**item, "id": task["id"], "kind": "gold", **gold}
        for kind, taken in (("do_nothing", []), ("always_transfer", [TRANSFER])):
            yield {**item, "id": task["id"], "kind": kind, "actions": taken, "say": "Hello.", "reward": proof["rewards"][kind]}


def _played(path: Path, limit: int | None) -> Iterator[Json]:
    """The graded conversations of a run."""
    from tau2rl.env.domain import domain
    from tau2rl.report.aggregate import counted
    from tau2rl.runs.records import read_run
    from tau2rl.types import StopReason

    stopped = (StopReason.USER_STOP, StopReason.AGENT_STOP)
    graded = [one.episode for one in counted(read_run(path)) if one.episode.grade is not None]
    for episode in graded[:limit]:
        ref, grade = episode.task, episode.grade
        assert grade is not None
        yield {
            "id": ref.key,
            "kind": "played",
            "domain": ref.domain,
            "task": domain(ref.domain).task(ref).model_dump(mode="json"),
            "messages": list(episode.trajectory),
            "stopped": episode.stop_reason.value if episode.stop_reason in stopped else "max_steps",  # which is graded as 0
            "reward": grade.reward,
        }


def compared(items: list[Json], tree: Path) -> Json:
    """Grade the items with the code in `tree`: by kind how many there are and how many are solved, and what differs."""
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder) / "asked.jsonl", Path(folder) / "answered.jsonl"
        asked.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
        paths = [f"PYTHONPATH={tree / 'src'}", f"TAU2_DATA_DIR={tree / 'data'}", "LITELLM_LOCAL_MODEL_COST_MAP=True"]
        command = ["env", *paths, sys.executable, __file__, "--inside", str(tree), str(asked), str(answered)]
        subprocess.run(command, check=True, cwd=folder)
        results = [json.loads(line) for line in answered.read_text("utf-8").splitlines()]
    counts: dict[str, Json] = {}
    different: list[Json] = []
    for item, result in zip(items, results, strict=True):
        count = counts.setdefault(item["kind"], {"graded": 0, "solved": 0, **({"same_hash": 0} if "hash" in item else {})})
        count["graded"] += 1
        count["solved"] += result["reward"] >= SOLVED
        if "hash" in item:
            count["same_hash"] += result["hash"] == item["hash"]
        if abs(result["reward"] - item["reward"]) > 1e-6 or result["hash"] != item.get("hash", result["hash"]):
            ours = {"reward": item["reward"], "hash": item.get("hash")}
            different.append({"id": item["id"], "kind": item["kind"], "ours": ours, "official": result})
    return {**counts, "different": different}


def inside(tree: str, asked: str, answered: str) -> None:
    """Grade a file of items with the official tau2: nothing of tau2rl is imported here."""
    from loguru import logger

    import tau2

    logger.remove()
    assert Path(str(tau2.__file__)).is_relative_to(tree), f"{tau2.__file__} is another tau2"
    with open(answered, "w", encoding="utf-8") as out, open(asked, encoding="utf-8") as lines:
        for line in lines:
            print(json.dumps(_graded(json.loads(line))), file=out, flush=True)


def _graded(item: Json) -> Json:
    """The official reward of an item, and the hash of the databases in which its actions end."""
    from pydantic import TypeAdapter

    from tau2.data_model.message import Message
    from tau2.data_model.simulation import SimulationRun, TerminationReason
    from tau2.data_model.tasks import Task
    from tau2.domains.telecom.user_tools import TelecomUserTools
    from tau2.evaluator.evaluator import EvaluationType, evaluate_simulation

    # `break_vpn` writes into what tau2 keeps on the class: each item begins as a process does.
    TelecomUserTools.default_vpn_details = _vpn().model_copy(deep=True)
    task, end = Task.model_validate(item["task"]), ""
    if "messages" in item:
        messages = TypeAdapter(list[Message]).validate_python(item["messages"])
        messages.sort(key=lambda message: message.timestamp or "")  # calls and answers, as tau2's own orchestrator has them
    else:
        messages, end = _carried_out(item, task)
    run = SimulationRun(
        id="1", task_id=task.id, start_time="", end_time="", duration=0, messages=messages,
        termination_reason=TerminationReason(item.get("stopped") or "user_stop"),
    )  # fmt: skip
    info = evaluate_simulation(run, task, EvaluationType.ALL, solo_mode=False, domain=item["domain"])
    return {"reward": info.reward, "hash": end}


@functools.cache
def _vpn() -> Any:
    """tau2's default VPN as the process found it."""
    from tau2.domains.telecom.user_tools import TelecomUserTools

    return TelecomUserTools.default_vpn_details.model_copy(deep=True)


def _carried_out(item: Json, task: Any) -> tuple[list[Any], str]:
    """The conversation in which exactly these actions happen, and where they leave the databases."""
    from tau2.data_model.message import AssistantMessage, ToolCall, UserMessage
    from tau2.registry import registry

    environment, initial = registry.get_env_constructor(item["domain"])(), task.initial_state
    environment.set_state(
        initialization_data=initial.initialization_data if initial else None,
        initialization_actions=initial.initialization_actions if initial else None,
        message_history=[],
    )
    messages: list[Any] = []
    for number, action in enumerate(item["actions"]):
        by = action["requestor"]
        call = ToolCall(id=str(number), name=action["name"], arguments=action["arguments"], requestor=by)
        speaker = UserMessage if by == "user" else AssistantMessage
        messages += [speaker(role=by, tool_calls=[call]), environment.get_response(call)]
    messages += [AssistantMessage(role="assistant", content=item["say"]), UserMessage(role="user", content="###STOP###")]
    agents, users = environment.get_db_hash(), environment.get_user_db_hash()
    end = hashlib.sha256(f"{agents} {users}".encode()).hexdigest() if users else agents
    return messages, end


if __name__ == "__main__":
    inside(*sys.argv[2:]) if sys.argv[1:2] == ["--inside"] else main()
