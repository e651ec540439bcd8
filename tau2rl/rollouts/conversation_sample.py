"""A few conversations of each step for trackers: sampled as episodes end, so that no more than those are held."""

from __future__ import annotations

import hashlib

from tau2rl.chat.template import chat_dicts, openai_message
from tau2rl.config import GrpoConfig, dump
from tau2rl.runs.secrets import Redactor, key_variables
from tau2rl.runs.tracker_libraries import TrackedConversation
from tau2rl.runs.trackers import most_conversations
from tau2rl.types import EpisodeRecord, Status


class ConversationSample:
    """Draws by a hash of the attempt: which ones are drawn does not depend on who ends first, nor on how many are drawn."""

    def __init__(self, config: GrpoConfig) -> None:
        """As many as `tracking` wants."""
        self._most = most_conversations(config.tracking)
        self._redactor = Redactor(key_variables(dump(config)))
        self._sides: dict[bool, list[tuple[bytes, EpisodeRecord]]] = {True: [], False: []}

    @property
    def wanted(self) -> bool:
        """Whether any tracker takes one."""
        return self._most > 0

    def add(self, record: EpisodeRecord) -> None:
        """Take note of an episode; one that FAILED says nothing of the model."""
        if not self.wanted or record.episode.status is Status.FAILED:
            return
        side = self._sides[record.episode.solved]
        side.append((hashlib.sha256(record.attempt.key.encode("utf-8", "replace")).digest(), record))
        side.sort(key=lambda pair: pair[0])
        del side[self._most :]

    def take(self) -> list[TrackedConversation]:
        """Those since the last call, a solved one and another in turns while there are both."""
        solved, others = ([record for _, record in self._sides[side]] for side in (True, False))
        self._sides = {True: [], False: []}
        longest = max(len(solved), len(others))
        turns = [record for place in range(longest) for record in (*solved[place : place + 1], *others[place : place + 1])]
        return [self._conversation(record) for record in turns[: self._most]]

    def _conversation(self, record: EpisodeRecord) -> TrackedConversation:
        """Without keys: it may leave this machine."""
        episode = record.episode
        return TrackedConversation(
            attempt=record.attempt.key,
            status=episode.status.value,
            reward=None if episode.grade is None else episode.grade.reward,
            score=None if record.score is None else record.score.shaped,
            turns=len(episode.turns),
            messages=self._redactor.values([openai_message(message) for message in chat_dicts(episode.messages)]),
        )
