"""Grade -> Score.

- The formulas of each preset, worked out by hand.
- What counts: cookbook and pipeline count actions outside the basis; outcome and guarded count the basis only.
- Not graded gives None, never 0; a conversation that was cut off has reward 0 and a real partial score.
- Components are shares of checks met, and four terms that sum to the shaped score.
"""

import pytest
from hypothesis import given, strategies as st

from tau2rl.reward.presets import PRESETS
from tau2rl.reward.score import score, score_episode
from tau2rl.types import Checks, Episode, FinishReason, Grade, MalformedKind, Message, Status, StopReason, TaskRef, Turn

TELECOM = Checks(action=(True, True, False, False), env_assertion=(True, False), communicate=(True,))


TERMS = ("outcome", "shaping", "steps", "tools")  # sum to `shaped`, with those of the user's; the others are shares of checks met


def graded(checks, reward=0.0, basis=("DB", "COMMUNICATE")):
    return Grade(reward=reward, checks=checks, reward_basis=basis)


def scored(grade, preset, domain="retail", steps=0, invalid_calls=0):
    return score(grade, PRESETS[preset], domain=domain, steps=steps, invalid_calls=invalid_calls)


def test_cookbook_is_a_plain_weighted_sum():
    s = scored(graded(TELECOM), "cookbook", "telecom")
    assert s.partial == pytest.approx(0.7 * 0.5 + 0.2 * 0.5 + 0.1 * 1.0)
    assert s.shaped == pytest.approx(0.3 * 0.55)


def test_pipeline_divides_by_the_weights_that_are_there():
    actions_only = graded(Checks(action=(True, False), db=(True,)))
    assert scored(actions_only, "pipeline", "retail").partial == pytest.approx(0.5)
    assert scored(actions_only, "pipeline", "retail").shaped == pytest.approx(0.25 * 0.8 * 0.5)
    assert scored(graded(TELECOM), "pipeline", "telecom").partial == pytest.approx(0.35 * 0.5 + 0.30 * 0.5 + 0.35)
    assert scored(graded(TELECOM), "pipeline", "airline").partial == pytest.approx(0.5 * 0.5 + 0.35 * 0.5 + 0.15)


def test_a_success_keeps_its_reward_and_adds_the_partial_score():
    s = scored(graded(Checks(action=(True,), db=(True,)), reward=1.0), "pipeline", "airline")
    assert (s.task, s.partial, s.shaped) == (1.0, 1.0, 1.25)


def test_db_is_shown_and_not_counted_by_the_published_presets():
    s = scored(graded(Checks(db=(True,))), "pipeline")
    assert (s.components["db"], s.partial, s.shaped) == (1.0, 0.0, 0.0)


def test_the_published_presets_count_actions_outside_the_basis():
    grade = graded(Checks(action=(True, False), db=(False,)), basis=("DB",))
    assert scored(grade, "cookbook").partial == pytest.approx(0.35)


def test_outcome_and_guarded_count_the_basis_only():
    grade = graded(Checks(action=(True, True), db=(False,), communicate=(True, True, False, False)))
    for preset in ("outcome", "guarded"):
        assert scored(grade, preset).partial == pytest.approx((0.0 + 0.5) / 2)
    moved = graded(grade.checks, basis=("ACTION",))
    assert scored(moved, "outcome").partial == 1.0


def test_outcome_is_the_reward_and_nothing_else():
    assert scored(graded(TELECOM), "outcome", "telecom", steps=90, invalid_calls=9).shaped == 0.0
    assert scored(graded(TELECOM, reward=1.0), "outcome", "telecom", steps=90, invalid_calls=9).shaped == 1.0


def test_guarded_penalties_and_their_caps():
    won, lost = graded(Checks(db=(True,)), reward=1.0), graded(Checks(db=(False,)))
    assert scored(won, "guarded", steps=20, invalid_calls=2).shaped == pytest.approx(1 - 0.2 - 0.2)
    assert scored(lost, "guarded", steps=20, invalid_calls=2).shaped == pytest.approx(-1 - 0.2 - 0.2)
    assert scored(lost, "guarded", steps=999, invalid_calls=999).shaped == pytest.approx(-1 - 1.0 - 0.5)


def test_not_graded_has_no_partial_and_no_shaped_score():
    for preset in PRESETS:
        s = scored(graded(None), preset)
        assert (s.task, s.partial, s.shaped, s.components) == (0.0, None, None, {})


def test_a_task_without_any_counted_check_has_partial_0():
    assert scored(graded(Checks()), "pipeline").partial == 0.0


def episode(status, grade, malformed=None, tool_error=False):
    turn = Turn(start=0, end=1, prompt_hash="0", logprobs=None, finish_reason=FinishReason.STOP, actions=(), malformed=malformed)
    return Episode(
        task=TaskRef(domain="retail", task_id="1", split="test"), seed=1,
        status=status, stop_reason=StopReason.TURNS, token_ids=(1,),
        turns=(turn, turn), messages=(Message(role="tool", content="x", error=tool_error),), grade=grade,
    )  # fmt: skip


def test_a_conversation_that_was_cut_off_has_reward_0_and_real_checks():
    s = score_episode(episode(Status.TRUNCATED, graded(Checks(action=(True, False)))), PRESETS["pipeline"])
    assert (s.task, s.partial) == (0.0, 0.5)


def test_a_failed_episode_has_no_score():
    assert score_episode(episode(Status.FAILED, None), PRESETS["pipeline"]) is None


def test_steps_and_invalid_calls_come_from_the_episode():
    lost = episode(Status.MALFORMED, graded(Checks(db=(False,))), malformed=MalformedKind.BAD_JSON, tool_error=True)
    s = score_episode(lost, PRESETS["guarded"])
    assert s.components["steps"] == pytest.approx(-0.02)  # two turns
    assert s.components["tools"] == pytest.approx(-0.3)  # two unreadable turns and one refused call


verdicts = st.lists(st.booleans(), max_size=4).map(tuple)


@given(
    checks=st.builds(Checks, action=verdicts, communicate=verdicts, env_assertion=verdicts, db=verdicts, nl=verdicts),
    preset=st.sampled_from(sorted(PRESETS)),
    reward=st.sampled_from([0.0, 1.0]),
    steps=st.integers(0, 200),
    invalid=st.integers(0, 50),
)
def test_the_four_terms_sum_to_the_shaped_score(checks, preset, reward, steps, invalid):
    s = scored(graded(checks, reward=reward), preset, "telecom", steps, invalid)
    assert sum(s.components[term] for term in TERMS) == pytest.approx(s.shaped)
    assert 0.0 <= s.partial <= 1.0 + 1e-12
    assert all(0.0 <= share <= 1.0 for name, share in s.components.items() if name not in TERMS)


@given(checks=st.builds(Checks, action=verdicts, communicate=verdicts, env_assertion=verdicts))
def test_meeting_one_more_check_never_lowers_the_score(checks):
    better = Checks(action=tuple(True for _ in checks.action), communicate=checks.communicate, env_assertion=checks.env_assertion)
    for preset in PRESETS:
        assert scored(graded(better), preset).partial >= scored(graded(checks), preset).partial - 1e-12
