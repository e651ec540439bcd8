"""tau2's RewardInfo -> Grade.

- A real RewardInfo is read alike from either of pydantic's dumps.
- "No checks of this kind", "no judge ran" and "not graded" stay three different things.
- The basis is what tau2 says.
- Anything that is not a RewardInfo is a broken environment, not a reward of 0.
"""

import pytest

from tau2rl.errors import EnvironmentFailure
from tau2rl.reward.score import grade_from_tau2, kinds_met
from tau2rl.types import Checks, Grade


def info(**changes):
    return {"reward": 1.0, "db_check": {"db_match": True, "db_reward": 1.0}, "reward_basis": ["DB"], **changes}


def test_a_real_reward_info_is_read_from_either_dump():
    from tau2.data_model.simulation import ActionCheck, CommunicateCheck, DBCheck, EnvAssertionCheck, NLAssertionCheck, RewardInfo
    from tau2.data_model.tasks import Action, EnvAssertion

    gold = Action(action_id="1", name="cancel", arguments={"id": "7"})
    assertion = EnvAssertion(env_type="user", func_name="assert_x", arguments={})
    real = RewardInfo(
        reward=0.0,
        db_check=DBCheck(db_match=False, db_reward=0.0),
        action_checks=[ActionCheck(action=gold, action_match=met, action_reward=float(met)) for met in (True, False)],
        communicate_checks=[CommunicateCheck(info="4", met=True, justification="")],
        env_assertions=[EnvAssertionCheck(env_assertion=assertion, met=False, reward=0.0)],
        nl_assertions=[NLAssertionCheck(nl_assertion="polite", met=True, justification="")],
        reward_basis=["DB", "COMMUNICATE"],
    )
    expected = Grade(
        reward=0.0,
        checks=Checks(action=(True, False), communicate=(True,), env_assertion=(False,), db=(False,), nl=(True,)),
        reward_basis=("DB", "COMMUNICATE"),
    )
    assert grade_from_tau2(real.model_dump(mode="json")) == grade_from_tau2(real.model_dump()) == expected


def test_all_checks_null_means_not_graded():
    grade = grade_from_tau2({"reward": 0.0, "reward_basis": None, "db_check": None, "action_checks": None})
    assert grade == Grade(reward=0.0, checks=None, reward_basis=())


def test_an_empty_list_means_graded_without_such_checks():
    assert grade_from_tau2({"reward": 1.0, "env_assertions": [], "reward_basis": ["ENV_ASSERTION"]}).checks == Checks()


def test_assertions_that_no_judge_saw_are_none_and_not_empty():
    assert grade_from_tau2(info()).checks.nl is None
    assert grade_from_tau2(info(nl_assertions=[])).checks.nl == ()


def test_kinds_without_checks_are_left_out():
    assert kinds_met(Checks(db=(True,), communicate=(False, True))) == {"communicate": (False, True), "db": (True,)}


@pytest.mark.parametrize(
    "broken",
    [
        {},
        info(reward=None),
        info(reward="1.0"),
        info(reward=True),
        info(reward=float("nan")),
        info(reward=1.5),
        info(reward_basis="DB"),
        info(db_check={"db_reward": 1.0}),
        info(db_check=[True]),
        info(action_checks={"action_match": True}),
        info(action_checks=[{"met": True}]),
        info(communicate_checks=[{"met": "yes"}]),
        info(env_assertions="none"),
    ],
)
def test_what_is_not_a_reward_info_is_a_broken_environment(broken):
    with pytest.raises(EnvironmentFailure, match="tau2's reward"):
        grade_from_tau2(broken)
