"""What the names of faults mean, for people. `blame.py` and `user_faults.py` give them, docs/decide.md has the rules."""

from __future__ import annotations

from collections.abc import Iterable

MEANINGS = {
    # the task
    "quarantined": "the task is on the list of defective ones: `tau2rl tasks audit`",
    # the user simulator
    "empty_turn": "the user said nothing",
    "role_flip": "the user spoke as the agent",
    "out_of_character": "the user spoke of the scenario or the simulation",
    "invented_fact": "the user named an identifier, number, date or name that it was not told and did not hear",
    "told_before_asked": "the user told an identifier before the agent had answered, though it was to wait until it is asked",
    "repetition": "the user said (nearly) the same three times",
    "invented_result": "the user reported of its phone what no call had shown",
    "stopped_too_early": "the user left while the agent waited for an answer or was about to act",
    "early_transfer": "the user left as transferred, and nobody had transferred it",
    # the agent
    "malformed": "the agent's turn could not be read",
    "loop": "the agent made the same call, or said the same, again and again",
    "truncated": "a limit of turns, tokens or time cut the episode off",
    "tool_ownership": "the agent called a tool of the user's",
    "premature_transfer": "the agent transferred, and the reference does not",
    "write_without_confirmation": "the agent changed the database without the confirmation that the domain policy demands",
    "wrong_argument": "a change was made with arguments that are not those of the reference",
    "wrong_tool": "another change was made than the reference's",
    "extra_write": "a change was made that the reference does not have",
    "missing_follow_up": "the user had looked, and what had to come then did not",
    "gave_up": "the agent called no tool at all",
    "missing_write": "a change of the reference was not made",
    "missing_information": "the user was not told what it had to learn",
    "other": "no rule says why",
}
READ_OUT = (
    "a scripted user of the benchmark's own tasks reads its scenario out unasked: told_before_asked is expected then, with the "
    "gold policy too, and says nothing about an agent"
)


def explained(names: Iterable[str], *, scripted: bool) -> list[str]:
    """A line for each name that has a meaning here, and one where a scripted user has it by nature.

    >>> explained(["gave_up", "http_500"], scripted=True)
    ['gave_up: the agent called no tool at all']
    """
    found = list(dict.fromkeys(names))
    return [f"{name}: {MEANINGS[name]}" for name in found if name in MEANINGS] + (
        [READ_OUT] if scripted and "told_before_asked" in found else []
    )
