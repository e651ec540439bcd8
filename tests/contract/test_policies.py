"""One suite over every Policy: SGLang, SGLang behind its router, an API of one's own, one through litellm, a script.

Pinned here, for each:

- a turn has at least one id, and a log-probability for each or none at all; `max_tokens` bounds the ids; many calls run at once
- a policy behind a server sends the seed, goes greedy without changing the original, passes cancellation on
- however its server fails (dead, hung, dripping, HTML, cut JSON, lies), it raises PolicyFailure with one short line, within
  its deadline; an overloaded server is tried again; one that limits its rate is asked until the deadline, whatever the retries
- an answer of 100 MB, one without an end and a gzip bomb cost bounded memory
- ready() tells a person when there is nothing to ask
"""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import pytest

from tau2rl.chat.transcript import TranscriptCodec
from tau2rl.config import PolicyConfig
from tau2rl.errors import PolicyFailure, UserError
from tau2rl.policy import ServedPolicy, make_policy
from tau2rl.policy.scripted import ScriptedPolicy, do_nothing_script
from tau2rl.protocols import Policy
from tau2rl.types import Completion, Message, Opening
from tests.stubs.http import MODES, StubServer
from tests.stubs.openai import OpenAIStub
from tests.stubs.router import PACKAGE, Router
from tests.stubs.sglang import AGREED, SGLangStub

CODEC = TranscriptCodec()
PROMPT = CODEC.open(Opening(domain_policy="Be kind.", messages=(Message(role="user", content="Hello?"),), tools=()))
ROUTERS: dict[str, Router] = {}  # the one of these tests, while it runs
GUARD_SECONDS = 60.0  # a test that hangs fails instead; no policy here is given more than half of it


@dataclass(frozen=True, kw_only=True)
class World:
    """A policy's server, and how to open the policy on it."""

    server: StubServer
    open: Callable[[], ServedPolicy]
    seed_of: Callable[[dict[str, Any]], int]
    temperature_of: Callable[[dict[str, Any]], float]


@contextmanager
def sglang(mode: Any = "ok", **config: Any) -> Generator[World, None, None]:
    with SGLangStub(mode=mode) as server:
        yield sglang_world(server, PolicyConfig(kind="sglang", url=server.url, **config))


def sglang_world(server: SGLangStub, settings: PolicyConfig) -> World:
    return World(
        server=server,
        open=lambda: make_policy(settings, CODEC, concurrency=16),
        seed_of=lambda body: body["sampling_params"]["sampling_seed"],
        temperature_of=lambda body: body["sampling_params"]["temperature"],
    )


@pytest.fixture(scope="module", autouse=True)
def _router(tmp_path_factory: pytest.TempPathFactory) -> Generator[None, None, None]:
    """One process for all tests of a worker; the engines come and go. Its own retries are off: ours are under test."""
    if find_spec(PACKAGE) is None:
        yield
        return
    log = tmp_path_factory.mktemp("router") / "log.txt"
    with Router(log, "--disable-retries", "--disable-circuit-breaker") as ROUTERS["one"]:
        yield
    del ROUTERS["one"]


@contextmanager
def routed(mode: Any = "ok", **config: Any) -> Generator[World, None, None]:
    """An SGLang server behind `sglang-router`."""
    pytest.importorskip(PACKAGE)
    router = ROUTERS["one"]
    with SGLangStub(mode=mode) as server, router.over(server.url):
        yield sglang_world(server, PolicyConfig(kind="sglang", url=router.url, **config))


@contextmanager
def api(mode: Any = "ok", *, model: str = "openai/stub", **config: Any) -> Generator[World, None, None]:
    with OpenAIStub(mode=mode) as server:
        settings = PolicyConfig(kind="api", model=model, api_base=server.api_base, **config)
        yield World(
            server=server,
            open=lambda: make_policy(settings, CODEC, concurrency=16),
            seed_of=lambda body: body["seed"],
            temperature_of=lambda body: body["temperature"],
        )


@contextmanager
def litellm(mode: Any = "ok", **config: Any) -> Generator[World, None, None]:
    pytest.importorskip("litellm")
    with api(mode, model="deepseek/stub", **config) as world:
        yield world


SERVED = {"sglang": sglang, "routed": routed, "api": api, "litellm": litellm}
LIES = {
    "sglang": [mode for mode in SGLangStub.modes if mode not in (*MODES, *AGREED)],  # those are for the episode loop to see
    "routed": [mode for mode in SGLangStub.modes if mode not in (*MODES, *AGREED)],
    "litellm": ["no_choices", "wrong_types", "filtered", "aborted"],
    "api": ["no_choices", "wrong_types", "filtered", "aborted"],  # its other modes are the model's doing, not the server's
}
FAILURES = ["dead", "disconnect", "html", "truncated", "cut", "not_object", "400", "401", "404", "413", "500", "503"]
FLOODS = ["huge", "endless", "gzip_bomb"]


@pytest.fixture(params=["sglang", "routed", "api", "litellm"])
def serve(request: pytest.FixtureRequest) -> Callable[..., AbstractContextManager[World]]:
    return SERVED[request.param]


async def ask(policy: Policy, *, seed: int = 3, max_tokens: int = 500) -> Completion:
    call = policy.complete(tuple(PROMPT), seed=seed, session="mock/a#0", max_tokens=max_tokens)
    return await asyncio.wait_for(call, GUARD_SECONDS)


@asynccontextmanager
async def any_policy(kind: str, world: World | None) -> AsyncGenerator[Callable[[], Policy], None]:
    """How to get a policy for one more episode."""
    if world is None:
        yield lambda: ScriptedPolicy(do_nothing_script(), CODEC)
    else:
        async with world.open() as policy:
            yield lambda: policy


def over(kind: str, use: Callable[[Callable[[], Policy]], Any]) -> Any:
    """Run `use` with a healthy policy of this kind."""

    async def inside(world: World | None) -> Any:
        async with any_policy(kind, world) as policy:
            return await use(policy)

    if kind == "scripted":
        return asyncio.run(inside(None))
    with SERVED[kind]() as world:
        return asyncio.run(inside(world))


@pytest.mark.parametrize("kind", ["sglang", "routed", "api", "litellm", "scripted"])
def test_a_turn_has_ids_and_a_logprob_for_each_or_none(kind: str) -> None:
    completion: Completion = over(kind, lambda policy: ask(policy()))
    assert len(completion.token_ids) > 0
    assert all(type(token) is int and token >= 0 for token in completion.token_ids)
    assert completion.logprobs is None or len(completion.logprobs) == len(completion.token_ids)
    assert (completion.logprobs is not None) == (kind in ("sglang", "routed"))


@pytest.mark.parametrize("kind", ["sglang", "routed", "api", "litellm", "scripted"])
@pytest.mark.parametrize("max_tokens", [1, 2])
def test_max_tokens_bounds_the_ids(kind: str, max_tokens: int) -> None:
    completion: Completion = over(kind, lambda policy: ask(policy(), max_tokens=max_tokens))
    assert len(completion.token_ids) == max_tokens
    assert completion.finish_reason.value == "length"


@pytest.mark.parametrize("kind", ["sglang", "routed", "api", "litellm", "scripted"])
def test_many_episodes_are_served_at_once(kind: str) -> None:
    async def many(policy: Callable[[], Policy]) -> list[Completion]:
        return await asyncio.gather(*(ask(policy(), seed=seed) for seed in range(16)))

    completions: list[Completion] = over(kind, many)
    assert len({completion.token_ids for completion in completions}) == 1


def play(world: World, use: Callable[[ServedPolicy], Any]) -> Any:
    async def inside() -> Any:
        async with world.open() as policy:
            return await use(policy)

    return asyncio.run(inside())


def test_the_server_gets_the_seed(serve: Callable[..., AbstractContextManager[World]]) -> None:
    with serve() as world:
        play(world, lambda policy: ask(policy, seed=123_456_789))
    assert [world.seed_of(request.body) for request in world.server.requests] == [123_456_789]


def test_greedy_leaves_the_original_as_it_was(serve: Callable[..., AbstractContextManager[World]]) -> None:
    async def use(policy: ServedPolicy) -> None:
        await ask(policy.greedy())
        await ask(policy)

    with serve() as world:
        play(world, use)
    assert [world.temperature_of(request.body) for request in world.server.requests] == [0.0, 0.7]


def failure_of(world: World) -> str:
    with pytest.raises(PolicyFailure) as caught:
        play(world, ask)
    return str(caught.value)


def is_short(words: str) -> bool:
    return 0 < len(words) < 350 and "\n" not in words and "Traceback" not in words


@pytest.mark.parametrize("mode", FAILURES)
def test_a_broken_server_is_a_policy_failure(serve: Callable[..., AbstractContextManager[World]], mode: str) -> None:
    with serve(mode, retries=0, timeout_seconds=20.0) as world:
        assert is_short(failure_of(world))


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in LIES.items() for mode in modes])
def test_a_lying_server_is_a_policy_failure(kind: str, mode: str) -> None:
    with SERVED[kind](mode, retries=0, timeout_seconds=20.0) as world:
        assert is_short(failure_of(world))
    assert len(world.server.requests) == 1


@pytest.mark.parametrize("kind", ["sglang", "routed", "api", "litellm"])
@pytest.mark.parametrize("mode", FLOODS)
def test_an_answer_that_is_too_large_is_a_failure_in_bounded_memory(kind: str, mode: str) -> None:
    if kind == "litellm":
        over("litellm", lambda policy: ask(policy()))  # what it imports at its first call is not counted
    held = kind == "routed" and mode == "endless"  # by the router, which sends nothing on before it has everything
    with SERVED[kind](mode, timeout_seconds=2.0 if held else 20.0) as world:
        tracemalloc.start()
        words = failure_of(world)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    # The router passes on a compressed body and not the word that it is one; litellm's clients unpack it.
    bomb = {"routed": "not JSON", "litellm": "more than"}.get(kind, "compressed")
    assert ("within 2 s" if held else bomb if mode == "gzip_bomb" else "more than") in words
    assert peak < 40 * 2**20
    assert len(world.server.requests) == 1


def test_a_rate_limit_is_waited_for_until_the_deadline(serve: Callable[..., AbstractContextManager[World]]) -> None:
    with serve("429", retries=0, timeout_seconds=2.0) as world:
        words = failure_of(world)
    assert "within 2 s" in words and "stub says 429" in words
    assert len(world.server.requests) >= 2
    with serve(["429", "429", "429", "429", "ok"], retries=0) as world:
        assert play(world, ask).token_ids


@pytest.mark.parametrize("mode", ["hang", "drip"])
def test_the_deadline_ends_a_call_that_brings_nothing(serve: Callable[..., AbstractContextManager[World]], mode: str) -> None:
    with serve(mode, timeout_seconds=0.5) as world:
        assert "within 0.5 s" in failure_of(world)


@pytest.mark.parametrize("busy", ["503", "disconnect"])
def test_an_overloaded_server_is_tried_again(serve: Callable[..., AbstractContextManager[World]], busy: str) -> None:
    with serve([busy, "ok"], retries=1) as world:
        assert play(world, ask).token_ids
    assert len(world.server.requests) == 2


def test_a_server_that_died_between_two_turns_is_a_policy_failure(serve: Callable[..., AbstractContextManager[World]]) -> None:
    async def use(policy: ServedPolicy) -> None:
        await ask(policy)
        await asyncio.to_thread(world.server.die)
        with pytest.raises(PolicyFailure) as caught:
            await ask(policy)
        assert is_short(str(caught.value))

    with serve(retries=0) as world:
        play(world, use)


def test_cancellation_passes_through(serve: Callable[..., AbstractContextManager[World]]) -> None:
    async def use(policy: ServedPolicy) -> None:
        task = asyncio.create_task(ask(policy))
        while not world.server.requests:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with serve("hang") as world:
        play(world, use)


def test_ready_names_what_answers(serve: Callable[..., AbstractContextManager[World]]) -> None:
    with serve() as world:
        assert "stub" in play(world, lambda policy: policy.ready(context_tokens=1024))


def test_ready_without_a_server_is_told_to_the_person(serve: Callable[..., AbstractContextManager[World]]) -> None:
    with serve("dead", retries=0) as world, pytest.raises(UserError) as caught:
        play(world, lambda policy: policy.ready())
    assert caught.value.hint


def test_scripts_are_not_made_from_a_config() -> None:
    with pytest.raises(ValueError, match="no server answers"):
        make_policy(PolicyConfig(kind="gold"), CODEC, concurrency=1)
