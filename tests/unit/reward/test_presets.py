"""Presets and the dominance proof.

- Every preset as it ships lets no failure reach a success, for 100 turns and every domain.
- Overrides replace exactly what they name; a given alpha holds in every domain.
- Settings under which a failure can win are refused, with the amount; `allow_dominated` accepts them.
- The bound is true: no random episode breaks it.
"""

import math
from typing import get_args

import pytest
from hypothesis import given, strategies as st

from tau2rl.config import DOMAINS, RewardConfig
from tau2rl.errors import UserError
from tau2rl.reward.presets import PRESETS, RewardSpec, Shaping, margin, spec_from
from tau2rl.reward.score import score
from tau2rl.types import Checks, Grade

PRESET_NAMES = get_args(RewardConfig.model_fields["preset"].annotation)


def test_every_configurable_preset_exists():
    assert set(PRESETS) == set(PRESET_NAMES)


@pytest.mark.parametrize("preset", PRESET_NAMES)
def test_shipped_presets_are_safe_for_100_turns(preset):
    spec = spec_from(RewardConfig(preset=preset), max_turns=100)
    assert all(margin(spec, domain, 100) > 0 for domain in DOMAINS)


@pytest.mark.parametrize(
    ("preset", "domain", "expected"),
    [
        ("cookbook", "retail", 1 - 0.3),
        ("pipeline", "retail", 1 - 0.25 * 0.8),
        ("pipeline", "airline", 1 - 0.25),
        ("pipeline", "telecom", 1 - 0.25 * 1.6),
        ("outcome", "telecom", 1.0),
        ("guarded", "telecom", (1 - 1.0 - 0.5) - (-1)),
    ],
)
def test_margins_of_the_presets(preset, domain, expected):
    assert margin(PRESETS[preset], domain, 100) == pytest.approx(expected)


def test_guarded_is_safe_for_any_horizon_because_its_penalties_are_capped():
    assert margin(PRESETS["guarded"], "retail", 10**6) == pytest.approx(0.5)


def test_a_given_alpha_holds_in_every_domain():
    spec = spec_from(RewardConfig(preset="pipeline", alpha=0.1), max_turns=30)
    assert {spec.shaping(domain).alpha for domain in DOMAINS} == {0.1}
    assert spec.shaping("telecom").weights == PRESETS["pipeline"].shaping("telecom").weights


def test_overrides_leave_the_rest_of_the_preset():
    spec = spec_from(RewardConfig(preset="cookbook", normalise=True, step_penalty=0.001, tool_penalty=0.02), max_turns=30)
    assert (spec.normalize, spec.step_penalty, spec.tool_penalty) == (True, 0.001, 0.02)
    assert spec.default == PRESETS["cookbook"].default


def test_zero_is_an_override_and_not_a_missing_value():
    spec = spec_from(RewardConfig(preset="guarded", step_penalty=0.0, tool_penalty=0.0), max_turns=30)
    assert spec.worst_success(30) == 1.0


def test_a_dominated_setting_is_refused_with_the_amount():
    # 30 turns at 0.05 cost 1.5: the worst success is -0.5, the best failure 0.
    with pytest.raises(UserError, match=r"outscore a success by 0\.5") as caught:
        spec_from(RewardConfig(preset="outcome", step_penalty=0.05), max_turns=30)
    assert "allow_dominated" in caught.value.hint


def test_a_tie_is_refused_too():
    with pytest.raises(UserError, match="score as much as a success"):
        spec_from(RewardConfig(preset="cookbook", alpha=1.0), max_turns=30)


def test_only_the_domains_of_the_run_are_checked():
    config = RewardConfig(preset="pipeline", step_penalty=0.007)  # 100 turns cost 0.7: retail 0.3 > 0.2, telecom 0.3 < 0.4
    assert spec_from(config, max_turns=100, domains=["retail"]).step_penalty == 0.007
    with pytest.raises(UserError, match="telecom"):
        spec_from(config, max_turns=100, domains=["retail", "telecom"])


def test_a_dominated_setting_can_be_accepted():
    spec = spec_from(RewardConfig(preset="outcome", step_penalty=0.05, allow_dominated=True), max_turns=30)
    assert margin(spec, "retail", 30) == pytest.approx(-0.5)


def test_an_uncapped_tool_penalty_has_no_bound():
    spec = RewardSpec(preset="own", default=Shaping(alpha=0.0, weights={}), tool_penalty=0.2)
    assert margin(spec, "retail", 30) == -math.inf


def test_negative_weights_are_refused():
    with pytest.raises(ValueError, match="not negative"):
        RewardSpec(preset="own", default=Shaping(alpha=-0.1, weights={}))


verdicts = st.lists(st.booleans(), max_size=4).map(tuple)
checks = st.builds(Checks, action=verdicts, communicate=verdicts, env_assertion=verdicts, db=verdicts, nl=verdicts)
basis = st.sets(st.sampled_from(["ACTION", "COMMUNICATE", "ENV_ASSERTION", "DB", "NL_ASSERTION"])).map(tuple)


@given(
    preset=st.sampled_from(PRESET_NAMES),
    domain=st.sampled_from(DOMAINS),
    good=checks,
    bad=checks,
    names=basis,
    steps=st.tuples(st.integers(0, 100), st.integers(0, 100)),
    invalid=st.tuples(st.integers(0, 500), st.integers(0, 500)),
)
def test_no_failure_ever_reaches_a_success(preset, domain, good, bad, names, steps, invalid):
    spec = PRESETS[preset]
    won = score(Grade(reward=1.0, checks=good, reward_basis=names), spec, domain=domain, steps=steps[0], invalid_calls=invalid[0])
    lost = score(Grade(reward=0.0, checks=bad, reward_basis=names), spec, domain=domain, steps=steps[1], invalid_calls=invalid[1])
    assert won.shaped - lost.shaped >= margin(spec, domain, 100) - 1e-9 > 0
