"""Our hooks in slime's own rollout, found by the command line that we build; needs a checkout of slime. Pinned here:

- a rollout comes back as groups of samples whose trained tokens are exactly those that were sampled, with their log-probabilities
- the samples are those that the same attempts give without slime
- groups without a signal are played again up to the cap; what is left over when slime has enough is aborted, and closed
- an evaluation samples as slime says, changes nothing of slime's, is kept apart and counts successes
- an attempt that fans out is one attempt, also where it does because its template takes thoughts out
- a server that lies and a user that is gone end nothing and poison nothing
- what slime aborts is nobody's failure; where nothing works any more the job ends, whatever slime does with an exception
- the numbers of a rollout are among slime's own; a user served by the job is asked where slime serves it
"""

from __future__ import annotations

import asyncio
import importlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tau2rl.chat.native import NativeCodec
from tau2rl.chat.tokenizers import CHATML_TEMPLATE, HFTokenizer
from tau2rl.data.encoding import pack
from tau2rl.errors import RunIncomplete, UserError
from tau2rl.runs.records import read_records
from tau2rl.runs.validation import validation_file
from tau2rl.slime.rollout import rollout_of
from tau2rl.slime.samples import KEY, metadata_of, task_of
from tests.contract.slime_episodes import DONE, RIGHT, SAMPLING, SCRIPTS, WRONG, agent, codec_of, rollout
from tests.contract.slime_job import RouterStub, SlimeJob, write_checkpoint
from tests.stubs.openai import OpenAIStub
from tests.stubs.sglang import Answer, logprob_of
from tests.stubs.slime_stubs import checkout

Start = Callable[..., SlimeJob]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkout()
    return write_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def thinker(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with a template that writes thoughts, and takes earlier ones out."""
    folder = Path(shutil.copytree(model, tmp_path_factory.mktemp("thinker") / "model"))
    (folder / "chat_template.jinja").write_text(CHATML_TEMPLATE, "utf-8")
    return folder


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path) -> Iterator[Start]:
    """Starts the job of a test, on a folder of its own."""
    jobs: list[SlimeJob] = []

    def begin(server: RouterStub, **values: Any) -> SlimeJob:
        jobs.append(SlimeJob(tmp_path / f"run{len(jobs)}", monkeypatch, server, **{"checkpoint": model, **values}))
        return jobs[-1]

    yield begin
    for job in jobs:
        job.close()


def test_a_rollout_trains_on_what_was_sampled(start: Start, model: Path) -> None:
    with RouterStub(answer=agent(codec_of(model))) as server:
        job = start(server, seed=303)
        samples = job.played()
    assert len(samples) == 4 and {sample.group_index for sample in samples} == {0}
    for sample in samples:
        found, prompt = metadata_of(sample), len(sample.tokens) - sample.response_length
        assert found.status == "completed" and sample.status is sample.Status.COMPLETED and sample.reward == found.score
        trained = [i for i, bit in enumerate(sample.loss_mask) if bit]
        assert trained == [i for _, begin, end in found.spans for i in range(begin, end)]
        wanted = [logprob_of(token) if bit else 0.0 for token, bit in zip(sample.tokens[prompt:], sample.loss_mask, strict=True)]
        assert sample.rollout_log_probs == wanted
        assert sample.loss_mask[0] == 1 and sample.loss_mask[-1] == 1  # it ends where sampling ended
        assert not sample.remove_sample and sample.prefix_cache_info.total_prompt_tokens > 0
    assert sorted(sample.reward for sample in samples) == [0.0, 0.0, 1.0, 1.0]
    assert {body["sampling_params"]["temperature"] for body in server.bodies} == {1.0}


def test_the_samples_are_those_of_the_same_attempts_without_slime(start: Start, model: Path, tmp_path: Path) -> None:
    with RouterStub(answer=agent(codec_of(model))) as server:
        job = start(server, seed=303)
        samples = job.played()

        async def alone() -> list[Any]:
            made = rollout(job.config, tmp_path / "alone", server)
            attempts = [made.attempt(task_of(sample), sample.index, validation=False) for sample in samples]
            played = [await made.play(attempt, SAMPLING) for attempt in attempts]
            await made.aclose()
            return played

        (tmp_path / "alone").mkdir()
        played = asyncio.run(alone())
    for sample, other in zip(samples, played, strict=True):
        begin, end = other.packed[0].turn_spans[0][0], other.packed[0].turn_spans[-1][1]
        assert tuple(sample.tokens) == other.packed[0].token_ids[:end]
        assert tuple(sample.loss_mask) == other.packed[0].loss_mask[begin:end]
        assert tuple(sample.rollout_log_probs) == other.packed[0].logprobs[begin:end]
        assert sample.reward == other.metadata.score


def test_groups_without_a_signal_are_played_again_up_to_the_cap(start: Start, model: Path) -> None:
    always = agent(codec_of(model), [(RIGHT, DONE)])
    with RouterStub(answer=always) as server:
        job = start(server, algo={"max_resample_rounds": 2})
        output = job.manager.generate_rollout(job.args, 0, job.manager.data_source)
    assert output.metrics == {"rollout/dynamic_filter/drop_same_scores": 2}
    assert len(output.samples) == 1 and len(server.requests) == 3 * 4 * 2  # three groups of four, two turns each


def test_what_slime_does_not_need_is_aborted_and_closed(start: Start, model: Path) -> None:
    tasks = {"domains": ["mock"], "split": "base", "ids": ["create_task_1", "update_task_1", "impossible_task_1"]}

    def slow(key: str) -> float:  # one group ends, and the others would take minutes
        return 0.0 if key.startswith("mock/create_task_1#") else 300.0

    with RouterStub(answer=agent(codec_of(model)), slow=slow) as server:
        job = start(server, seed=303, argv=["--over-sampling-batch-size", "3"], tasks=tasks, rollout={"concurrency": 12})
        samples = job.played()
        numbers = rollout_of(job.args).log.end_rollout(0, [], 1.0)
        job.close()
        wait_until(lambda: len([r for r in server.traffic.others if r.path == "/abort_request" and "rid" in r.body]) == 8)
    assert {metadata_of(sample).task for sample in samples} == {"mock/create_task_1"}
    assert numbers["episodes/played"] == 4 and numbers["episodes/aborted"] == 8
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("tau2 ")])


def test_what_slime_aborts_is_nobodys_failure(start: Start, model: Path) -> None:
    """SGLang answers `abort` to what is in flight before our own poll sees that slime has enough; nothing is tried again."""
    tasks = {"domains": ["mock"], "split": "base", "ids": ["create_task_1", "update_task_1", "impossible_task_1"]}

    def slow(key: str) -> float:
        return 0.0 if key.startswith("mock/create_task_1#") else 300.0

    with RouterStub(answer=agent(codec_of(model)), slow=slow, aborts=True) as server:
        oversampled = {"slime": {"extra": {"over-sampling-batch-size": 3}}}
        job = start(server, seed=303, tasks=tasks, rollout={"concurrency": 12, "retries": 0, "give_up_after": 1}, **oversampled)
        job.played()
        made = rollout_of(job.args)
        numbers = made.log.end_rollout(0, [], 1.0)
    assert (numbers["episodes/played"], numbers["episodes/failed"], numbers["episodes/aborted"]) == (4, 0, 8)
    assert not made.breaker.open and not (job.run.folder / "failures.jsonl").exists()


def wait_until(true: Callable[[], bool]) -> None:
    """Wait for something that must come true; the suite's own timeout ends a test for which it does not."""
    while not true():
        time.sleep(0.05)


def test_an_evaluation_counts_successes_and_changes_nothing_of_slimes(start: Start, model: Path) -> None:
    val = {"domains": ["mock"], "split": "synth-select", "limit": 3, "num_samples": 2, "temperature": 0.25}
    with RouterStub(answer=agent(codec_of(model), [(WRONG, DONE)])) as server:
        job = start(server, train={"tasks_per_step": 1, "val_every": 1}, val=val)
        job.manager.eval(0)
        job.manager.generate(0)
        job.manager.eval(0)
        keys = {request.headers["x-smg-routing-key"] for request in server.requests}
    assert {body["sampling_params"]["temperature"] for body in server.bodies} == {0.25, 1.0}
    for step in (0, 1):
        records = list(read_records(validation_file(job.run.folder, step)))
        assert len(records) == 6 and {record.attempt.index for record in records} == {0, 1}
    assert len(keys) == 6 + 4  # a key an episode: both validations play the same attempts
    first, _, last = job.lines()
    assert (first["step"], last["step"]) == (0, 1) and first["val/pass@1"] == last["val/pass@1"] == 0.0


def test_what_failed_moves_no_mean_of_an_evaluation(start: Start, model: Path) -> None:
    val = {"domains": ["mock"], "split": "base", "ids": ["create_task_1"], "num_samples": 3}
    with RouterStub(answer=agent(codec_of(model), [(RIGHT, DONE)]), mode=["500", "ok"]) as server:
        job = start(server, reward={"preset": "guarded"})  # under which a success scores less than 1
        write = importlib.import_module("tau2rl.env.tasks").write_prompts
        select = importlib.import_module("tau2rl.env.tasks").select
        write(select(job.config.val.model_copy(update=val)), job.run.eval_prompts)
        config = importlib.import_module("slime.utils.eval_config")
        given = [{"name": "val", "path": str(job.run.eval_prompts), "n_samples_per_eval_prompt": 3, "input_key": "input"}]
        job.args.eval_datasets = config.build_eval_dataset_configs(job.args, given, {})
        found = job.manager.eval_generate_rollout(job.args, 0, job.manager.data_source, evaluation=True).data
        importlib.import_module("tau2rl.slime.hooks").log_eval(0, job.args, found, None)
    assert sorted(metadata_of(sample).status for sample in found["val"]["samples"]) == ["completed", "completed", "failed"]
    assert sorted(sample.reward for sample in found["val"]["samples"]) == [0.0, 1.0, 1.0]
    assert found["val"]["rewards"] == [1.0, 1.0, 1.0]
    (line,) = job.lines()
    assert (line["val/pass@1"], line["val/episodes"], line["val/failed"]) == (1.0, 2, 1)


def test_an_attempt_that_fans_out_is_one_attempt(start: Start, model: Path) -> None:
    with RouterStub(answer=agent(codec_of(model))) as server:
        path = "tests.contract.slime_fan_out.generate"
        job = start(server, seed=303, argv=["--custom-generate-function-path", path], algo={"max_resample_rounds": 1})
        samples = job.played()
        data = job.manager._convert_samples_to_train_data(samples)
    assert len(samples) == 8 and len(set(data["rollout_ids"])) == 4
    by_rollout: dict[int, set[float]] = {}
    for rollout_id, reward in zip(data["rollout_ids"], data["rewards"], strict=True):
        by_rollout.setdefault(rollout_id, set()).add(round(reward, 4))
    assert sorted(next(iter(values)) for values in by_rollout.values()) == [-1.0, -1.0, 1.0, 1.0]
    assert all(len(values) == 1 for values in by_rollout.values())


THOUGHT = "The title and the user are known. "


def thinks(codec: NativeCodec) -> Answer:
    """As `agent`, behind a thought each turn that is longer than the budget: it goes on behind what closes it."""
    tokenizer = codec.chat.tokenizer
    scripts = [[tokenizer.decode(codec.write(turn)) for turn in script] for script in SCRIPTS]

    def answer(input_ids: list[int], params: dict[str, Any]) -> list[int]:
        before, _, begun = tokenizer.decode(input_ids).rpartition("<|im_start|>assistant\n")
        done = [next((i for i, turn in enumerate(script) if turn not in before), len(script)) for script in scripts]
        most = max(done)
        script = scripts[done.index(most) if most else (sum(input_ids) + params["sampling_seed"]) % len(scripts)]
        text = script[min(most, len(script) - 1)]
        return tokenizer.encode(text if "</think>" in begun else f"<think>\n{THOUGHT * 20}\n</think>\n\n{text}")

    return answer


def test_a_template_that_takes_thoughts_out_makes_several_samples_of_one_attempt(start: Start, thinker: Path) -> None:
    codec = NativeCodec(HFTokenizer(str(thinker)), thinking="per-turn")
    with RouterStub(answer=thinks(codec)) as server:
        job = start(
            server,
            checkpoint=thinker,
            seed=303,
            chat={"thinking": "per-turn", "thinking_tokens": 24},
            algo={"max_resample_rounds": 1, "loss_aggregation": "seq-mean"},
            rollout={"keep": True},
        )
        samples = job.played()
        data = job.manager._convert_samples_to_train_data(samples)
    records = {record.attempt.index: record.episode for record in read_records(job.run.folder / "episodes.jsonl")}
    by_attempt: dict[int, list[Any]] = {}
    for sample in samples:
        by_attempt.setdefault(sample.index, []).append(sample)
    assert len(by_attempt) == 4 and len(samples) > 4
    for index, mine in by_attempt.items():
        packed = pack(records[index])
        assert [tuple(sample.tokens) for sample in mine] == [piece.token_ids for piece in packed]
        for sample, piece in zip(mine, packed, strict=True):
            begin = piece.turn_spans[0][0]
            assert (
                tuple(sample.loss_mask) == piece.loss_mask[begin:] and tuple(sample.rollout_log_probs) == piece.logprobs[begin:]
            )
            assert 0 in sample.loss_mask[: piece.turn_spans[0][1] - begin]  # what closed the thought
        assert [turn for sample in mine for turn, _, _ in metadata_of(sample).spans] == list(range(len(records[index].turns)))
        assert len({sample.rollout_id for sample in mine}) == 1 and len({sample.reward for sample in mine}) == 1
    # slime weighs an attempt by what all its samples hold, in however many pieces it came.
    for index in by_attempt:
        places = [i for i, sample in enumerate(samples) if sample.index == index]
        total = sum(sum(data["loss_masks"][i]) for i in places)
        assert {data["rollout_mask_sums"][i] for i in places} == {total} and len({data["rewards"][i] for i in places}) == 1
        assert len({data["rollout_ids"][i] for i in places}) == 1
    assert len(set(data["rollout_ids"])) == 4


@pytest.mark.parametrize("mode", ["html", "nan", "context"])
def test_a_server_that_lies_ends_nothing_and_poisons_nothing(start: Start, model: Path, mode: str) -> None:
    with RouterStub(answer=agent(codec_of(model)), mode=["ok"] * 6 + [mode]) as server:
        job = start(server, seed=303, rollout={"concurrency": 1, "give_up_after": 50})
        job.args.sglang_server_concurrency = 1
        samples = job.played()
        data = job.manager._convert_samples_to_train_data(samples)
    statuses = [metadata_of(sample).status for sample in samples]
    ended = (
        "truncated" if mode == "context" else "failed"
    )  # a prompt that is said to be too long ends as any that outgrows its context
    assert statuses.count(ended) >= 1 and len(samples) == 4
    for sample, reward, mask in zip(samples, data["rewards"], data["loss_masks"], strict=True):
        if metadata_of(sample).status == "failed":
            assert sample.reward == 0.0 and reward == 0.0 and not any(mask) and len(mask) == sample.response_length >= 1
    (again,) = {len(data[key]) for key in ("tokens", "rewards", "rollout_log_probs", "loss_masks")}
    assert again == 4


def test_a_context_that_overflows_is_cut_and_trains(start: Start, model: Path) -> None:
    with RouterStub(answer=agent(codec_of(model)), context=100_000) as server:
        job = start(server, seed=303)
        longest = max(len(sample.tokens) for sample in job.played())
    with RouterStub(answer=agent(codec_of(model)), context=100_000) as server:
        job = start(server, seed=303, limits={"context_tokens": longest - 20})
        samples = job.played()
        sizes = [len(body["input_ids"]) + body["sampling_params"]["max_new_tokens"] for body in server.bodies]
    assert max(len(sample.tokens) for sample in samples) <= longest - 20 and max(sizes) <= longest - 20
    cut = [sample for sample in samples if sample.status is sample.Status.TRUNCATED]
    assert cut and all(sample.reward == 0.0 and not sample.remove_sample for sample in cut)


def test_a_user_that_stays_away_ends_the_job_with_the_reason(start: Start, model: Path) -> None:
    with OpenAIStub(mode="dead") as user, RouterStub(answer=agent(codec_of(model))) as server:
        someone = {"kind": "llm", "model": "openai/stub", "api_base": user.api_base, "retries": 0}
        job = start(server, user=someone, rollout={"give_up_after": 2}, slime={"circuit_breaker_seconds": 1.0})
        with pytest.raises(RunIncomplete, match="nothing has worked for 1 s: UserSimulatorFailure"):
            job.played()


def test_a_slime_that_goes_on_behind_it_ends_too(start: Start, model: Path) -> None:
    """As open pull requests of slime would: an exception in `generate` becomes an aborted sample."""
    with OpenAIStub(mode="dead") as user, RouterStub(answer=agent(codec_of(model))) as server:
        someone = {"kind": "llm", "model": "openai/stub", "api_base": user.api_base, "retries": 0}
        swallows = ["--custom-generate-function-path", "tests.contract.slime_swallows.generate"]
        job = start(server, argv=swallows, user=someone, rollout={"give_up_after": 2}, slime={"circuit_breaker_seconds": 1.0})
        with pytest.raises(RunIncomplete, match="nothing has worked for 1 s: UserSimulatorFailure"):
            job.manager.generate(0)


def test_a_sample_that_slime_made_up_counts_nowhere(start: Start, model: Path) -> None:
    with RouterStub(answer=agent(codec_of(model))) as server:
        first_breaks = ["--custom-generate-function-path", "tests.contract.slime_swallows.first_breaks"]
        job = start(server, seed=303, argv=first_breaks)
        samples = job.played()
        data = job.manager._convert_samples_to_train_data(samples)
    assert [metadata_of(sample).status for sample in samples] == ["aborted", "completed", "completed", "completed"]
    assert data["rewards"][0] == 0.0 and data["loss_masks"][0] == [0] and any(data["rewards"][1:])


def test_the_versions_of_the_weights_are_kept(start: Start, model: Path) -> None:
    with RouterStub(answer=agent(codec_of(model))) as server:
        samples = start(server, seed=303).played()
    assert all(sample.weight_versions == ["default"] * metadata_of(sample).turns for sample in samples)


def test_a_user_of_the_job_is_asked_where_slime_serves_it(start: Start, model: Path) -> None:
    def user_says(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
        return "Thank you. ###STOP###" if "done" in str(messages[-1]["content"]) else "Please create it for user_1."

    served = {"user": {"gpus": 2, "checkpoint": str(model)}}
    with OpenAIStub(answer=user_says) as user, RouterStub(answer=agent(codec_of(model))) as server:
        job = start(
            server,
            seed=303,
            slime=served,
            user={"kind": "llm"},
            attributes={"sglang_model_routers": {"user_sim": ("127.0.0.1", user.port)}},
        )
        samples = job.played()
        asked = {body["model"] for body in user.bodies}
    assert {metadata_of(sample).status for sample in samples} == {"completed"} and asked == {"user_sim"}
    with RouterStub(answer=agent(codec_of(model))) as server:
        job = start(server, slime=served, user={"kind": "llm"}, attributes={"sglang_model_routers": None})
        with pytest.raises(UserError, match="slime serves no model `user_sim`"):
            job.played()


def test_the_numbers_of_a_rollout_are_among_slimes_own(start: Start, model: Path) -> None:
    with RouterStub(answer=agent(codec_of(model))) as server:
        job = start(server, seed=303)
        logged: list[dict[str, Any]] = []
        tracking = importlib.import_module("slime.observability.logging_utils")
        tracking.log = lambda args, metrics, step_key: logged.append(metrics)
        job.manager.generate(0)
    (line,) = job.lines()
    assert (line["step"], line["success"], line["episodes/failed"], line["groups/useful"]) == (1, 0.5, 0, 1)
    (slimes,) = [metrics for metrics in logged if "rollout/step" in metrics]
    assert slimes["rollout/tau2rl/success"] == 0.5 and slimes["rollout/tau2rl/domain/mock/success"] == 0.5
    assert "rollout/response_len/mean" in slimes and slimes["perf/non_generation_time/mean"] > 0


def test_metadata_is_small(start: Start, model: Path) -> None:
    with RouterStub(answer=agent(codec_of(model))) as server:
        samples = start(server, seed=303).played()
    assert all(len(str(sample.metadata[KEY])) < 2000 for sample in samples)
