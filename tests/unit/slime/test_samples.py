"""What an episode leaves on its slime sample. Pinned here:

- metadata says what an episode was, survives JSON, and counts from the first sampled token
- what FAILED, was cut off where the settings drop that, or holds no turn is no evidence
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tau2rl.chat.native import NativeCodec
from tau2rl.chat.tokenizers import ByteTokenizer
from tau2rl.config import AlgoConfig
from tau2rl.reward.presets import spec_from
from tau2rl.reward.score import score_episode
from tau2rl.rollouts.runner import Outcome
from tau2rl.slime.samples import SampleMetadata
from tau2rl.types import Episode, Failure, Fault, Status
from tests.contract.slime_episodes import ASK, DONE, RIGHT, settings
from tests.play import CREATE, attempt, play


@pytest.fixture(scope="module")
def solved() -> Episode:
    return play((ASK, RIGHT, DONE), ref=CREATE, codec=NativeCodec(ByteTokenizer()))


def metadata_of(episode: Episode, algo: AlgoConfig | None = None) -> SampleMetadata:
    score = score_episode(episode, spec_from(settings().reward, max_turns=100, domains=["mock"]))
    return SampleMetadata.of(Outcome(attempt=attempt(), episode=episode), score, algo=algo)


def test_metadata_says_what_an_episode_was(solved: Episode) -> None:
    found = metadata_of(solved)
    assert (found.task, found.status, found.evidence, found.solved) == ("mock/create_task_1", "completed", True, True)
    assert (found.reward, found.score, found.turns, found.refused, found.tries) == (1.0, 1.0, 3, 0, 1)
    assert found.user_messages == 2  # the call went to the environment, the two texts to the user
    assert SampleMetadata.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_spans_begin_where_the_response_does(solved: Episode) -> None:
    first = solved.turns[0].start
    assert metadata_of(solved).spans == tuple((i, t.start - first, t.end - first) for i, t in enumerate(solved.turns))
    assert metadata_of(solved).spans[0][1] == 0


def test_what_is_no_evidence_has_no_score(solved: Episode) -> None:
    failure = Failure(fault=Fault.USER, kind="UserSimulatorFailure", message="gone " * 100)
    failed = metadata_of(replace(solved, status=Status.FAILED, grade=None, failure=failure))
    assert (failed.evidence, failed.solved, failed.reward, failed.score, failed.fault) == (False, None, None, None, "user")
    assert failed.failure.startswith("UserSimulatorFailure: gone") and len(failed.failure) == 200
    cut = replace(solved, status=Status.TRUNCATED)
    assert metadata_of(cut).evidence and not metadata_of(cut, AlgoConfig(truncated="drop")).evidence
    assert metadata_of(cut, AlgoConfig(truncated="drop")).score is None
    assert not metadata_of(replace(solved, turns=())).evidence
