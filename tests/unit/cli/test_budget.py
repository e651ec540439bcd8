"""What a run may spend, through the commands; pinned here:

- before the start an earlier run gives the estimate, in tokens, dollars and hours, in the run and in a dry run; without one the
  first episodes do; the prices name litellm's list with its version, or are those of the settings;
- a cap of tokens, dollars or hours is not passed: what began ends and is kept, the run is incomplete and says why, what it
  printed goes on, and a resume with a higher cap plays only the rest; with the same cap it begins nothing;
- `eval`, `seed` and `rft-filter` stop alike; `sft` and `grpo` stop behind a step, saved;
- caps are said as they were set, and what one took with the machine's hour; a cap that was lifted since is not lifted again;
- a cap that could not hold is refused: no price, nothing that costs, no tokens, a backend that nothing stops;
- in a pipeline the cap holds over all runs together; hours are known of a session that was killed, too.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from tau2rl.cli import app
from tau2rl.config import ShapeConfig
from tau2rl.runs.prices import listed, price_list
from tau2rl.train.tiny import create_tiny
from tests.stubs.http import Request, Response
from tests.stubs.interrupts import interrupt_before_the_session
from tests.stubs.openai import OpenAIStub

runner = CliRunner()
SHAPE = ShapeConfig(hidden=16, layers=1, heads=1, head_dim=16, intermediate=32, vocab_size=300)
HELLO = [{"role": "system", "content": "Help."}, {"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi!"}]
EPISODES = 12  # 3 tasks, 4 attempts
# As many of one task: all take the same, so a cap holds to the token however they end. One dearer than all before may pass it.
ALIKE = ["--set", "tasks.limit=1", "--set", "rollout.num_samples=12"]


@pytest.fixture
def server() -> Iterator[OpenAIStub]:
    """An agent that says good-bye at once."""
    with OpenAIStub(answer=lambda messages, tools: "Good bye.") as stub:
        yield stub


def asked(tmp_path: Path, server: OpenAIStub, stage: str = "eval", name: str = "run") -> list[str]:
    """The words of a run against the stub; further options may follow."""
    values: dict[str, Any] = {
        "tasks": {"domains": ["mock"], "split": "synth-train", "limit": 3},
        "policy": {"kind": "api", "model": "openai/stub-model", "api_base": server.api_base},
        "user": {"kind": "scripted"},
        "chat": {"protocol": "transcript"},
        "rollout": {"num_samples": 4, "concurrency": 8, "retries": 0},
        "limits": {"max_turns": 2},
        "launch": {"inline": True},
    }
    (tmp_path / f"{stage}.yaml").write_text(yaml.safe_dump(values), "utf-8")
    return [stage, "-c", str(tmp_path / f"{stage}.yaml"), "--output", str(tmp_path / name)]


def invoke(*words: str) -> Result:
    return runner.invoke(app, list(words))


def report_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text("utf-8"))


def played(folder: Path) -> int:
    return len((folder / "episodes.jsonl").read_text("utf-8").splitlines())


def tokens_in(folder: Path) -> int:
    tokens = report_in(folder)["cost"]["tokens"]
    return sum(tokens[name] for name in ("policy_in", "policy_out", "user_in", "user_out"))


def test_an_earlier_run_gives_the_estimate(tmp_path: Path, server: OpenAIStub) -> None:
    first = invoke(*asked(tmp_path, server))
    assert first.exit_code == 0, first.stderr
    assert "estimate" not in first.stderr  # nothing has a price or a cap
    whole = tokens_in(tmp_path / "run")
    again = [*asked(tmp_path, server, name="half"), "--like", str(tmp_path / "run"), "--budget.policy_price", "1000,2000"]
    again += ["--num-samples", "2", "--budget.usd_per_hour", "3"]
    dry = invoke(*again, "--dry-run", "--json")
    estimate = json.loads(dry.stdout)["estimate"]
    cost = report_in(tmp_path / "run")["cost"]
    assert (estimate["total"], estimate["tokens"]) == (EPISODES // 2, round(whole / 2))
    read, wrote = (cost["tokens"][name] / 2 * 1e-3 for name in ("policy_in", "policy_out"))
    hours = cost["process"]["wall_seconds"] / 3600 / 2
    assert estimate["hours"] == pytest.approx(hours)
    assert estimate["usd"] == pytest.approx(read + 2 * wrote + 3 * hours)

    result = invoke(*again)
    line = next(line for line in result.stderr.splitlines() if line.startswith("estimate"))
    assert line.startswith(f"estimate for {EPISODES // 2} episodes: {round(whole / 2):,} tokens, $")
    assert "from 12 episodes of" in line and "given in the settings" in line and "$3 an hour" in line
    assert report_in(tmp_path / "half")["budget"]["estimate"]["tokens"] == round(whole / 2)
    assert f"# {line[:30]}" in invoke(*again, "--dry-run").stdout


def test_without_an_earlier_run_the_first_episodes_do(tmp_path: Path, server: OpenAIStub) -> None:
    result = invoke(*asked(tmp_path, server), "--max-tokens", "1000000")
    assert result.exit_code == 0, result.stderr
    line = next(line for line in result.stderr.splitlines() if line.startswith("estimate"))
    assert re.fullmatch(r"estimate for 12 episodes: .*, from the first 4 episodes", line)
    assert "budget: " in result.stdout and "at most 1,000,000 tokens" in result.stdout


def test_what_asks_no_model_says_so_and_costs_its_time(tmp_path: Path) -> None:
    gold = ["seed", "--domains", "mock", "--task-split", "synth-train", "--policy", "gold", "--limit", "6", "--inline"]
    played = invoke(*gold, "--max-hours", "1", "--output", str(tmp_path / "gold"))
    assert played.exit_code == 0, played.stderr
    like = invoke(*gold, "--like", str(tmp_path / "gold"), "--dry-run")
    took = r"(\d+\.\d s|[\d:]+ (min|h))"
    estimate = rf"estimate for 6 episodes: {took}, from {{}}; no model is asked"
    assert re.search(estimate.format("the first 4 episodes"), played.stderr)
    assert re.search(estimate.format(f"6 episodes of `{tmp_path}/gold`"), like.stdout)
    assert re.search(rf"^budget: spent {took}, with loading and saving; at most 1 hour; no model is asked$", played.stdout, re.M)


def test_small_amounts_are_written_out(tmp_path: Path, server: OpenAIStub) -> None:
    words = asked(tmp_path, server)
    result = invoke(*words, "--budget.policy_price", "0.1,0.2", "--max-usd", "0.00004", "--max-hours", "0.5")
    assert result.exit_code == 1
    assert re.search(r"stopped at the cap budget.max_usd = \$0.00004: \$0.0000\d+ spent, and one of the episodes", result.stderr)
    assert "; at most $0.00004, 0.5 hours (30:00 min); stopped at the cap `--max-usd`; prices: " in result.stdout


def test_caps_are_said_as_they_were_set(tmp_path: Path, server: OpenAIStub) -> None:
    words = [*asked(tmp_path, server), "--budget.policy_price", "1,1"]
    large = invoke(*words, "--max-usd", "12.345", "--max-hours", "12345.678")
    assert "; at most $12.345, 12,345.678 hours; prices: given in the settings" in large.stdout
    words[words.index("--output") + 1] = str(tmp_path / "next")
    small = invoke(*words, "--max-usd", "0.104", "--max-hours", "0.9999999")
    assert "; at most $0.104, 0.9999999 hours (1:00:00 h); prices: " in small.stdout


def test_a_machine_that_costs_nothing_is_no_price(tmp_path: Path, server: OpenAIStub) -> None:
    with OpenAIStub(answer=lambda messages, tools: "I want to create a task.") as user:
        words = [*asked(tmp_path, server), "--user-model", "openai/mine", "--set", f"user.api_base={user.api_base}"]
        values = yaml.safe_load((tmp_path / "eval.yaml").read_text())
        (tmp_path / "eval.yaml").write_text(yaml.safe_dump({**values, "user": {"kind": "llm"}}))
        result = invoke(*words, "--budget.usd_per_hour", "0", "--max-tokens", "1000000")
    assert re.search(r"^budget: spent .*; at most 1,000,000 tokens$", result.stdout, re.M), result.output


def test_what_one_took_has_the_hour_of_the_machine_in_it(tmp_path: Path) -> None:
    with OpenAIStub(answer=lambda messages, tools: "Good bye.", latency=0.3) as stub:
        words = [*asked(tmp_path, stub), *ALIKE, "--set", "budget.policy_price=[1000000, 1000000]"]
        free = invoke(*words, "--set", "rollout.num_samples=1")
        assert free.exit_code == 0, free.stderr
        tokens = tokens_in(tmp_path / "run")
        words[words.index("--output") + 1] = str(tmp_path / "capped")
        result = invoke(*words, "--max-usd", str(7.5 * tokens), "--budget.usd_per_hour", "3600")  # a dollar a second
    assert result.exit_code == 1, result.stderr
    lines = (tmp_path / "capped" / "episodes.jsonl").read_text("utf-8").splitlines()
    longest = max(json.loads(line)["episode"]["seconds"] for line in lines)
    told = re.search(r"one of the episodes took up to \$([\d,.]+);", result.stderr)
    assert told and float(told[1].replace(",", "")) == pytest.approx(tokens + longest, abs=0.01)
    assert longest >= 0.3


def test_the_price_list_is_litellms_and_names_its_version() -> None:
    words = price_list()[1]
    assert words.startswith("litellm 1.") and ", list " in words
    price = listed("gpt-4.1-mini")
    prefixed = listed("openai/gpt-4.1-mini")
    assert price is not None and prefixed is not None and price.source.endswith(words)
    assert (price.read, price.write) == (prefixed.read, prefixed.write)
    assert (price.read, price.write, price.cached) == (4e-7, 1.6e-6, 1e-7)
    assert listed("openai/my-own-model") is None and listed("azure/claude-sonnet-4-5") is None


@pytest.mark.parametrize("stage", ["eval", "seed", "rft-filter"])
def test_a_cap_of_tokens_is_not_passed_and_a_higher_one_goes_on(stage: str, tmp_path: Path, server: OpenAIStub) -> None:
    free = invoke(*asked(tmp_path, server, stage, name="free"), *ALIKE)
    assert free.exit_code == 0, free.stderr
    cap = int(tokens_in(tmp_path / "free") * 0.6)
    run = [*asked(tmp_path, server, stage), *ALIKE]
    result = invoke(*run, "--max-tokens", str(cap))
    assert result.exit_code == 1
    count, spent = played(tmp_path / "run"), tokens_in(tmp_path / "run")
    assert count == 7 and spent <= cap
    assert f"stopped at the cap budget.max_tokens = {cap:,} tokens: {spent:,} tokens spent, and one of the" in result.stderr
    assert "gave up" not in result.stderr and " left" not in result.stderr and "$" not in result.stderr + result.stdout
    assert f"; at most {cap:,} tokens; stopped at the cap `--max-tokens`" in result.stdout
    report = report_in(tmp_path / "run")
    assert report["incomplete"] and report["budget"]["stopped"] == "max_tokens"
    assert report["budget"]["spent"]["tokens"] == spent

    command = shlex.split(result.stderr.splitlines()[-1])[1:]
    assert command[-3:-1] == ["--resume", "--max-tokens"]
    same = invoke(*command[:-1], str(cap))
    assert same.exit_code == 1 and played(tmp_path / "run") == count
    more = invoke(*command)
    assert more.exit_code == 0, more.stderr
    assert played(tmp_path / "run") == EPISODES and not report_in(tmp_path / "run")["budget"]["stopped"]
    seeds = [
        [json.loads(line)["attempt"]["seed"] for line in (tmp_path / name / "episodes.jsonl").open()] for name in ("run", "free")
    ]
    assert sorted(seeds[0]) == sorted(seeds[1])


def test_only_a_cap_that_still_holds_is_lifted(tmp_path: Path, server: OpenAIStub, monkeypatch: pytest.MonkeyPatch) -> None:
    run = asked(tmp_path, server)
    assert invoke(*run, "--max-tokens", "1").exit_code == 1
    stopped = tmp_path / "run" / "logs" / "latest" / "stopped.json"
    kept = json.loads(stopped.read_text("utf-8"))
    assert (kept["cap"], kept["value"]) == ("max_tokens", 1)
    interrupt_before_the_session(monkeypatch, tmp_path / "run")

    def suggested(*more: str) -> str:
        result = invoke(*run, "--resume", *more)
        assert result.exit_code == 130, result.stderr
        return result.stderr.splitlines()[-1].partition("--resume")[2]

    assert suggested("--max-tokens", "1") == f" --max-tokens {2 * kept['spent']}"
    assert suggested("--max-tokens", "1000000") == suggested() == suggested("--max-hours", "1") == ""
    stopped.write_text(json.dumps({"cap": kept["cap"], "spent": kept["spent"]}), "utf-8")  # as an earlier version wrote it
    assert suggested("--max-tokens", "1000000") == " --max-tokens 2000000"


def test_caps_of_dollars_and_of_hours_stop_too(tmp_path: Path, server: OpenAIStub) -> None:
    free = invoke(*asked(tmp_path, server, name="free"), *ALIKE)
    assert free.exit_code == 0
    tokens = report_in(tmp_path / "free")["cost"]["tokens"]
    dollars = tokens["policy_in"] * 1e-6 + tokens["policy_out"] * 5e-6
    price = ["--set", "budget.policy_price=[1, 5]"]
    result = invoke(*asked(tmp_path, server, name="usd"), *ALIKE, *price, "--max-usd", str(dollars / 2))
    assert result.exit_code == 1 and "stopped at the cap budget.max_usd" in result.stderr
    spent = report_in(tmp_path / "usd")["budget"]["spent"]["usd"]
    assert dollars / 4 < spent <= dollars / 2 and 4 <= played(tmp_path / "usd") < EPISODES

    late = invoke(*asked(tmp_path, server, name="late"), "--max-hours", "1e-9")  # over before anything began
    assert late.exit_code == 1 and "stopped at the cap budget.max_hours" in late.stderr
    assert not (tmp_path / "late" / "episodes.jsonl").exists()
    assert invoke(*asked(tmp_path, server, name="late"), "--resume", "--max-hours", "1").exit_code == 0


@pytest.mark.parametrize(
    ("more", "words", "hint"),
    [
        (["--max-usd", "1"], "no price is known of the tokens of policy (litellm 1.", "budget.policy_price"),
        (["--policy", "gold", "--max-usd", "1"], "nothing here costs dollars", "budget.usd_per_hour"),
        (["--policy", "gold", "--max-tokens", "1"], "budget.max_tokens has no effect", "leave out budget.max_tokens"),
        (
            ["--max-usd", "1", "--user-model", "openai/mine", "--budget.policy_price", "1,1"],
            "tokens of user",
            "budget.user_price",
        ),
        (["--set", "budget.policy_price=[-1, 2]"], "budget.policy_price", "greater than or equal to 0"),
        (["--set", "budget.user_price=[1, -2]"], "budget.user_price", "greater than or equal to 0"),
        (["--like", "nowhere"], "budget.like: `nowhere` has no report", "a finished run"),
    ],
)
def test_what_cannot_hold_is_refused(more: list[str], words: str, hint: str, tmp_path: Path, server: OpenAIStub) -> None:
    command = asked(tmp_path, server)
    if "gold" in more:  # an API's settings would be idle
        values = yaml.safe_load((tmp_path / "eval.yaml").read_text())
        (tmp_path / "eval.yaml").write_text(yaml.safe_dump({**values, "policy": {"kind": "gold"}}))
    for start in ([], ["--no-inline", "--dry-run"]):
        result = invoke(*command, *more, *start)
        assert result.exit_code == 2, result.stderr
        assert words in result.stderr and hint in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_that_took_no_tokens_gives_no_price_of_a_model(tmp_path: Path, server: OpenAIStub) -> None:
    command = asked(tmp_path, server)
    values = yaml.safe_load((tmp_path / "eval.yaml").read_text())
    (tmp_path / "gold.yaml").write_text(yaml.safe_dump({**values, "policy": {"kind": "gold"}}))
    gold = ["eval", "-c", str(tmp_path / "gold.yaml"), "--output", str(tmp_path / "gold"), "--inline"]
    assert invoke(*gold).exit_code == 0
    priced = [*command, "--like", str(tmp_path / "gold"), "--budget.policy_price", "1,2"]
    for start in ([], ["--dry-run"]):
        result = invoke(*priced, *start)
        assert result.exit_code == 2 and "it does not say what a model's cost" in result.stderr, result.output


def test_hours_are_written_down_while_a_run_goes_on(tmp_path: Path) -> None:
    """So a session that is killed has hours too."""
    seen: list[float] = []

    def answer(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
        seen.append(json.loads((tmp_path / "run" / "logs" / "session_1" / "usage.json").read_text("utf-8"))["seconds"])
        return "Good bye."

    with OpenAIStub(answer=answer) as stub:
        assert invoke(*asked(tmp_path, stub), "--max-hours", "1").exit_code == 0
    assert len(seen) >= EPISODES


def test_a_policy_that_counts_no_tokens_is_not_played_on(tmp_path: Path, server: OpenAIStub) -> None:
    class Uncounted(OpenAIStub):
        def _completion(self, body: dict[str, Any], mode: str) -> dict[str, Any]:
            return {**super()._completion(body, mode), "usage": None}

    with Uncounted(answer=lambda messages, tools: "Good bye.") as stub:
        result = invoke(*asked(tmp_path, stub), "--max-tokens", "1000")
    assert result.exit_code == 1 and "budget.max_tokens cannot be held" in result.stderr


def test_a_user_simulator_that_counts_no_tokens_is_not_played_on(tmp_path: Path, server: OpenAIStub) -> None:
    class Uncounted(OpenAIStub):
        def _completion(self, body: dict[str, Any], mode: str) -> dict[str, Any]:
            return {**super()._completion(body, mode), "usage": None}

    with Uncounted(answer=lambda messages, tools: "I want to create a task.") as user:
        command = asked(tmp_path, server)
        values = yaml.safe_load((tmp_path / "eval.yaml").read_text())
        values["user"] = {"kind": "llm", "model": "openai/mine", "api_base": user.api_base}
        (tmp_path / "eval.yaml").write_text(yaml.safe_dump(values))
        # The dollars of both are those of the machine: it is the tokens that cannot be held.
        result = invoke(*command, "--max-usd", "9", "--budget.usd_per_hour", "1", "--max-tokens", "100000")
        assert result.exit_code == 1, result.stderr
        assert "budget.max_tokens cannot be held: the user simulator's server counts no tokens" in result.stderr
        free = invoke(*command[:-1], str(tmp_path / "free"), "--max-usd", "9", "--budget.usd_per_hour", "1")
        assert free.exit_code == 0, free.stderr


def is_check(request: Request) -> bool:
    """Whether it is the question that a run asks before it plays, or none about a chat."""
    return not request.body or request.body["messages"][-1]["content"] == "Are you there?"


class Failing(OpenAIStub):
    """An agent whose first turn is counted, and whose second call the server refuses; `paid` is what it counted in all."""

    paid = 0

    async def reply(self, request: Request, mode: str) -> Response:
        if not is_check(request) and sum(message["role"] == "assistant" for message in request.body["messages"]) > 1:
            return Response(status=400, payload={"error": {"message": "no more"}})
        response = await super().reply(request, mode)
        if not is_check(request):
            self.paid += response.payload["usage"]["total_tokens"]
        return response


def test_tries_of_failed_episodes_stay_under_the_cap(tmp_path: Path) -> None:
    with Failing(answer=lambda messages, tools: "What else?") as stub:
        command = [*asked(tmp_path, stub), "--set", "rollout.num_samples=1", "--set", "rollout.give_up_after=100"]
        assert invoke(*command, "--set", "rollout.retries=0").exit_code == 1
        dearest, stub.paid = stub.paid, 0  # of one try each
        cap = 2 * dearest
        command[command.index("--output") + 1] = str(tmp_path / "capped")
        result = invoke(*command, "--set", "rollout.retries=2", "--max-tokens", str(cap))
        assert result.exit_code == 1, result.stderr
        assert dearest < stub.paid <= cap
    assert f"stopped at the cap budget.max_tokens = {cap:,}" in result.stderr
    assert report_in(tmp_path / "capped")["budget"]["spent"]["tokens"] == stub.paid


def test_failures_that_cost_nothing_do_not_open_the_cap(tmp_path: Path) -> None:
    refused = iter([True] * 40)

    class Late(OpenAIStub):
        async def reply(self, request: Request, mode: str) -> Response:
            if not is_check(request) and next(refused, False):
                return Response(status=400, payload={"error": {"message": "not yet"}})
            return await super().reply(request, mode)

    with Late(answer=lambda messages, tools: "Good bye.", latency=0.1) as stub:
        command = asked(tmp_path, stub)
        more = ["--set", "rollout.num_samples=16", "--set", "rollout.concurrency=48", "--set", "rollout.give_up_after=100"]
        assert invoke(*command, *more, "--max-tokens", "1000000").exit_code == 1  # of the failures
        assert len(stub.requests) > 40 and stub.max_in_flight <= 8  # 4, and as many as have been paid for


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "start"
    create_tiny([("a", {"messages": HELLO})], SHAPE, folder, seed=0)
    return folder


def grpo(checkpoint: Path, folder: Path, *more: str) -> Result:
    values: dict[str, Any] = {
        "model": {"init": str(checkpoint)},
        "tasks": {"domains": ["mock"], "split": "synth-train", "limit": 3},
        "user": {"kind": "scripted"},
        "sampling": {"max_tokens": 4},
        "limits": {"max_turns": 1, "context_tokens": 4000, "repairs": 0},
        "reward": {"preset": "outcome"},
        "rollout": {"num_samples": 2, "retries": 0},
        "train": {"steps": 6, "tasks_per_step": 2, "save_every": 100},
        "launch": {"inline": True},
    }
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(values), "utf-8")
    return invoke("grpo", "-c", str(file), "--output", str(folder), *more)


def steps_in(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]


def test_grpo_stops_behind_a_step_and_goes_on_from_it(checkpoint: Path, tmp_path: Path) -> None:
    assert grpo(checkpoint, tmp_path / "free").exit_code == 0
    free = report_in(tmp_path / "free")
    cap = (free["cost"]["tokens"]["policy_in"] + free["cost"]["tokens"]["policy_out"]) // 2
    stopped = grpo(checkpoint, tmp_path / "run", "--max-tokens", str(cap))
    assert stopped.exit_code == 1
    done = steps_in(tmp_path / "run")
    assert 0 < len(done) < 6 and "estimate for 6 steps" in stopped.stderr
    assert f"stopped at the cap budget.max_tokens = {cap:,}" in stopped.stderr
    assert f"step {done[-1]} of 6 is the last that the budget allows" in stopped.stderr
    assert shlex.split(stopped.stderr.splitlines()[-1])[-2:] == ["--max-tokens", str(2 * cap)]
    assert grpo(checkpoint, tmp_path / "run", "--max-tokens", str(cap), "--resume").exit_code == 1
    assert steps_in(tmp_path / "run") == done
    assert grpo(checkpoint, tmp_path / "run", "--max-tokens", str(9 * cap), "--resume").exit_code == 0
    assert steps_in(tmp_path / "run") == [1, 2, 3, 4, 5, 6]
    weights = [report_in(tmp_path / name)["outputs"]["checkpoint"]["sha256"] for name in ("run", "free")]
    assert weights[0] == weights[1]

    like = grpo(checkpoint, tmp_path / "next", "--like", str(tmp_path / "free"), "--steps", "3", "--dry-run", "--json")
    assert json.loads(like.stdout)["estimate"]["tokens"] == round(tokens_in(tmp_path / "free") / 2)
    # On a cluster, where no cap holds, the estimate is there all the same.
    more = ["--like", str(tmp_path / "free"), "--budget.usd_per_hour", "20", "--train.save_every", "2"]
    estimate = json.loads(grpo(checkpoint, tmp_path / "next", "--backend", "slime", *more, "--dry-run", "--json").stdout)[
        "estimate"
    ]
    assert estimate["usd"] == pytest.approx(20 * estimate["hours"])


def test_sft_stops_behind_a_step_and_goes_on_from_it(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"id": "a#0", "messages": HELLO}) + "\n", "utf-8")
    words = ["sft", "--model", str(checkpoint), "--data", str(tmp_path / "rows.jsonl"), "--steps", "3", "--inline"]
    words += ["--set", "data.val_fraction=0", "--output", str(tmp_path / "run")]
    stopped = invoke(*words, "--max-hours", "1e-9")
    assert stopped.exit_code == 1 and "the budget allows none of the 3 steps" in stopped.stderr
    done = invoke(*words, "--max-hours", "1", "--resume")
    assert done.exit_code == 0, done.stderr
    assert steps_in(tmp_path / "run") == [1, 2, 3]


@pytest.mark.parametrize("cap", ["--max-usd", "--max-tokens", "--max-hours"])
def test_on_slime_a_cap_is_refused(cap: str, checkpoint: Path, tmp_path: Path) -> None:
    result = grpo(checkpoint, tmp_path / "run", "--backend", "slime", cap, "1")
    assert result.exit_code == 2 and "has no effect while backend is `slime`: nothing stops such a training" in result.stderr


def pipeline(tmp_path: Path, checkpoint: Path, *more: str, backend: str = "local") -> Result:
    mock = {"tasks": {"domains": ["mock"], "split": "synth-train", "limit": 2}, "user": {"kind": "scripted"}}
    small = {"limits": {"max_turns": 1, "context_tokens": 4000, "repairs": 0}, "rollout": {"num_samples": 2, "retries": 0}}
    rl = {
        **mock,
        **small,
        "model": {"init": str(checkpoint)},
        "sampling": {"max_tokens": 4},
        "train": {"steps": 2, "tasks_per_step": 1},
    }
    values: dict[str, Any] = {
        "steps": {
            "seed": {"stage": "seed", "settings": mock},
            "first": {"stage": "grpo", "settings": {**rl, "backend": backend, "reward": {"preset": "outcome"}}},
            "second": {"stage": "grpo", "model": "first", "settings": {**rl, "reward": {"preset": "outcome"}}},
        },
        "launch": {"inline": True},
    }
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(values, sort_keys=False), "utf-8")
    return invoke("run", "-c", str(tmp_path / "pipeline.yaml"), "--output", str(tmp_path / "chain"), *more)


def test_the_cap_of_a_pipeline_holds_over_its_runs(checkpoint: Path, tmp_path: Path) -> None:
    refused = pipeline(tmp_path, checkpoint, "--max-hours", "1", backend="slime")
    assert refused.exit_code == 2 and "trains on `slime`, where nothing stops it at a cap" in refused.stderr
    assert "no price is known of the tokens of policy" in pipeline(tmp_path, checkpoint, "--max-usd", "1").stderr

    whole = pipeline(tmp_path, checkpoint)
    assert whole.exit_code == 0, whole.stderr
    one = report_in(tmp_path / "chain" / "runs" / "02-first")["cost"]["tokens"]
    each = one["policy_in"] + one["policy_out"]  # of two steps
    (tmp_path / "chain").rename(tmp_path / "whole")

    stopped = pipeline(tmp_path, checkpoint, "--max-tokens", str(int(each * 1.7)))
    assert stopped.exit_code == 1, stopped.stderr
    assert (tmp_path / "chain" / "runs" / "02-first" / "report.json").exists()
    assert steps_in(tmp_path / "chain" / "runs" / "03-second") == [1]
    assert "stopped at the cap budget.max_tokens" in stopped.stderr
    assert f"tokens spent of {int(each * 1.7):,} tokens" in stopped.stderr and "--resume" not in stopped.stderr
    spent_up = pipeline(tmp_path, checkpoint, "--max-tokens", str(each))
    assert spent_up.exit_code == 1 and "the cap budget.max_tokens of the pipeline is reached: " in spent_up.stderr
    told = shlex.split(stopped.stderr.splitlines()[-1])[1:]
    assert told[-2:] == ["--max-tokens", str(2 * int(each * 1.7))]
    done = invoke(*told, "--like", str(tmp_path / "whole"))
    assert done.exit_code == 0, done.stderr
    assert f"estimate for 3 runs: {2 * each:,} tokens" in done.stderr
    assert not report_in(tmp_path / "chain")["incomplete"]
