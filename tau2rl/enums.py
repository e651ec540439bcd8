"""The closed sets of words: how an episode ended, who is to blame, why sampling stopped, how a turn was malformed."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, cast

TRANSFER_TOOL = "transfer_to_human_agents"  # tau2's, in every domain that can hand over to a human


class Status(StrEnum):
    """How an episode ended, as evidence about the model."""

    COMPLETED = "completed"  # tau2 ended it by its own rules and graded it
    TRUNCATED = "truncated"  # cut off: steps, turns, tokens or time; reward 0, checks still count
    MALFORMED = "malformed"  # the model left the chat protocol and did not come back; reward 0, checks still count
    FAILED = "failed"  # environment or infrastructure failure: no evidence, never a number


class Fault(StrEnum):
    """Who is to blame when an episode did not succeed."""

    AGENT = "agent"
    USER = "user"
    TASK = "task"
    INFRA = "infra"


class UserSignal(StrEnum):
    """What tau2's simulated user ends a conversation with; nobody says it."""

    STOP = "###STOP###"
    TRANSFER = "###TRANSFER###"
    OUT_OF_SCOPE = "###OUT-OF-SCOPE###"


class FinishReason(StrEnum):
    """Why the policy stopped sampling a turn."""

    STOP = "stop"
    LENGTH = "length"


class Ending(StrEnum):
    """What ended an answer of a chat server; only the first two are the model's own doing."""

    STOP = "stop"
    LENGTH = "length"
    FILTER = "content_filter"
    BROKEN = "broken"  # `abort`, `error`, a word that nobody knows: what there is may be half an answer


# The words of servers and providers, in lower case: OpenAI's, then those that others have for the same.
_ENDINGS = {
    Ending.STOP: (
        "stop tool_calls function_call tool_use eos eos_token stop_sequence end_turn complete"
        " malformed_function_call unexpected_tool_call too_many_tool_calls"  # Gemini's, for what its model wrote
    ),
    Ending.LENGTH: "length model_length max_tokens max_output_tokens model_context_window_exceeded",
    Ending.FILTER: (
        "content_filter content_filtered refusal safety recitation language blocklist prohibited_content spii sensitive"
        " guardrail_intervened error_toxic"
    ),
}
_ENDING_OF = {word: ending for ending, words in _ENDINGS.items() for word in words.split()}


def ending_of(choice: Mapping[str, Any]) -> Ending:
    """What ended a choice of a chat answer, by its `finish_reason`; a server that gives none has ended it itself.

    litellm writes `stop` for what it does not know, and keeps the provider's word beside it.

    >>> ending_of({"finish_reason": "length"}).value, ending_of({"finish_reason": "abort"}).value
    ('length', 'broken')
    """
    told: object = choice.get("provider_specific_fields")
    own = cast("dict[str, object]", told).get("native_finish_reason") if isinstance(told, dict) else None
    reason = own or choice.get("finish_reason")
    if reason is None or reason == "":
        return Ending.STOP
    return _ENDING_OF.get(reason.lower(), Ending.BROKEN) if isinstance(reason, str) else Ending.BROKEN


class StopReason(StrEnum):
    """What ended a conversation: tau2's own words (its `TerminationReason`), then ours."""

    USER_STOP = "user_stop"
    AGENT_STOP = "agent_stop"
    JUDGE_STOP = "judge_stop"
    MAX_STEPS = "max_steps"
    TIMEOUT = "timeout"
    TOO_MANY_ERRORS = "too_many_errors"
    AGENT_ERROR = "agent_error"
    USER_ERROR = "user_error"
    INFRASTRUCTURE_ERROR = "infrastructure_error"
    UNEXPECTED_ERROR = "unexpected_error"

    TURNS = "turns"  # `limits.max_turns`
    CONTEXT = "context"  # `limits.context_tokens`, or the context of the model behind an API
    LENGTH = "length"  # a turn reached its token limit
    DEADLINE = "deadline"  # `limits.episode_timeout_seconds`
    MALFORMED = "malformed"  # too many malformed turns in a row
    FAILED = "failed"  # an infrastructure failure


class MalformedKind(StrEnum):
    """The named ways in which a sampled turn fails to be one."""

    EMPTY = "empty"
    NO_CLOSE_TAG = "no_close_tag"
    NO_OPEN_TAG = "no_open_tag"
    TWO_CALLS = "two_calls"
    TEXT_OUTSIDE = "text_outside"
    NO_CALL = "no_call"
    BAD_JSON = "bad_json"
    NOT_AN_OBJECT = "not_an_object"
    MISSING_NAME = "missing_name"
    ARGUMENTS_NOT_AN_OBJECT = "arguments_not_an_object"
    UNKNOWN_TOOL = "unknown_tool"
    WRONG_ARGUMENTS = "wrong_arguments"
    NO_CONTENT = "no_content"
    TOO_LONG = "too_long"
    TOO_DEEP = "too_deep"
