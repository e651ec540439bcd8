"""What a policy may hand to the episode loop, pinned here, on the real tau2 `mock` domain:

- a token id outside the vocabulary, negative or beyond 64 bits, a positive log-probability, NaN or -inf, and more or fewer of
  them than ids are a FAILED episode of the infrastructure, never an error that ends the run; so from any policy, and so from a
  server that sends them
- an empty message, or nothing at all, is the agent's doing: MALFORMED, graded 0
- a prompt beyond the context of the model that answers is a truncation: TRUNCATED, `context`, graded
- every word that tau2 has for the end of a conversation is a stop reason
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from tau2rl.chat import make_codec
from tau2rl.config import ChatConfig, PolicyConfig
from tau2rl.errors import ContextExceeded
from tau2rl.policy.api import ApiPolicy
from tau2rl.policy.sglang import SGLangPolicy
from tau2rl.types import CallTool, Completion, Fault, FinishReason, MalformedKind, Say, Status, StopReason
from tests.play import play
from tests.stubs.openai import OpenAIStub
from tests.stubs.sglang import UNSAMPLED, SGLangStub

NATIVE = make_codec(ChatConfig(protocol="native", tokenizer="bytes"))


class Samples:
    """Answers each prompt with one completion, after as many good turns as it is told."""

    def __init__(self, ids: tuple[int, ...], logprobs: tuple[float, ...] | None = None) -> None:
        self.completion = Completion(token_ids=ids, logprobs=logprobs, finish_reason=FinishReason.STOP)

    async def complete(self, prompt_ids: Sequence[int], *, seed: int, session: str, max_tokens: int) -> Completion:
        return self.completion


GOOD = tuple(NATIVE.write((Say(text="Good bye."),)))


@pytest.mark.parametrize(
    ("ids", "logprobs", "words"),
    [
        ((-1,), None, "token id -1, which is outside its vocabulary of 258"),
        ((2**63,), None, f"token id {2**63}, which is outside"),
        ((258,), None, "token id 258, which is outside"),
        ((10, 258), (-0.5, -0.5), "token id 258, which is outside"),
        (GOOD, (0.5,) * len(GOOD), "log-probability of 0.5"),
        (GOOD, (-0.5,) * (len(GOOD) - 1) + (math.nan,), "log-probability of nan"),
        (GOOD, (-math.inf,) * len(GOOD), "log-probability of -inf"),
        (GOOD, (math.inf,) * len(GOOD), "log-probability of inf"),
        (GOOD, (-0.5,), f"{len(GOOD)} tokens came with 1 log-probabilities"),
    ],
)
def test_what_no_model_sampled_is_a_failure_of_the_infrastructure(
    ids: tuple[int, ...], logprobs: tuple[float, ...] | None, words: str
) -> None:
    episode = play(policy=Samples(ids, logprobs), codec=NATIVE)
    assert (episode.status, episode.fault) == (Status.FAILED, Fault.INFRA)
    assert episode.failure is not None and episode.failure.kind == "PolicyFailure" and words in episode.failure.message


def test_rounding_above_zero_is_a_log_probability() -> None:
    episode = play(policy=Samples(GOOD, (1e-6,) * len(GOOD)), codec=NATIVE)
    assert episode.status is not Status.FAILED


@pytest.mark.parametrize("mode", UNSAMPLED)
def test_a_server_that_sends_it_fails_its_episode_alone(mode: str) -> None:
    with SGLangStub(mode=mode, context=10**7) as server:
        episode = play(policy=SGLangPolicy(PolicyConfig(url=server.url)), codec=NATIVE)
    assert (episode.status, episode.fault) == (Status.FAILED, Fault.INFRA)
    assert len(server.requests) == 1


@pytest.mark.parametrize("ids", [(), (257,), (10, 257)])
def test_an_agent_that_says_nothing_is_to_blame_itself(ids: tuple[int, ...]) -> None:
    episode = play(policy=Samples(ids, (-0.5,) * len(ids)), codec=NATIVE)
    assert (episode.status, episode.stop_reason, episode.fault) == (Status.MALFORMED, StopReason.MALFORMED, Fault.AGENT)
    assert episode.grade is not None and episode.grade.reward == 0.0
    assert all(turn.malformed is MalformedKind.EMPTY for turn in episode.turns)


@pytest.mark.parametrize(("kind", "mode"), [("sglang", "empty"), ("api", "empty"), ("api", "null")])
def test_so_is_one_behind_a_server(kind: str, mode: str) -> None:
    if kind == "sglang":
        with SGLangStub(mode=mode, context=10**7) as server:
            episode = play(policy=SGLangPolicy(PolicyConfig(url=server.url)), codec=NATIVE)
    else:
        with OpenAIStub(mode=mode) as server:
            config = PolicyConfig(kind="api", model="openai/stub", api_base=server.api_base)
            episode = play(policy=ApiPolicy(config))
    assert (episode.status, episode.fault) == (Status.MALFORMED, Fault.AGENT)


def test_a_context_that_nobody_told_us_of_truncates() -> None:
    create = CallTool(name="create_task", arguments={"user_id": "user_1", "title": "Important Meeting"})

    class Short:
        """Takes one turn, and no more fits."""

        taken = False

        async def complete(self, prompt_ids: Sequence[int], *, seed: int, session: str, max_tokens: int) -> Completion:
            if self.taken:
                raise ContextExceeded("this model's maximum context length is 100 tokens")
            self.taken = True
            return Completion(token_ids=tuple(NATIVE.write((create,))), logprobs=None, finish_reason=FinishReason.STOP)

    episode = play(policy=Short(), codec=NATIVE)
    assert (episode.status, episode.stop_reason, episode.failure) == (Status.TRUNCATED, StopReason.CONTEXT, None)
    assert len(episode.turns) == 1
    assert episode.grade is not None and episode.grade.reward == 0.0
    assert episode.grade.checks is not None and all(episode.grade.checks.db)  # what it did before counts in the partial score


def test_tau2s_words_for_the_end_are_all_known() -> None:
    from tau2.data_model.simulation import TerminationReason

    assert {reason.value for reason in TerminationReason} <= {reason.value for reason in StopReason}
