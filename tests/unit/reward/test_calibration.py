"""Iterative Reward Calibration.

- phi is the correlation of two yes/no variables, and None where one of them never varies.
- Values follow phi: above delta alpha * phi, below it 0; what cannot be told keeps its value and says why.
- Signs are checked on held-out tasks only; a wrong sign or no correlation is a problem, and the recipe is not accepted.
- The recipe's digest depends on the values and on every constant.
"""

import random
from dataclasses import replace

import pytest
from scipy import stats

from tau2rl.reward.calibration import CalibrationSpec, TierRow, calibrate, freeze, phi
from tau2rl.reward.tiers import DENSE, Tier

SPEC = CalibrationSpec(min_support=5)


def rollouts(seed=0, tasks=40, size=4, gold_goes_with_success=True):
    """Reads everywhere at random; gold turns in successes (or, turned round, in failures); errors in failures."""
    generator = random.Random(seed)
    rows = []
    for task in range(tasks):
        for _ in range(size):
            success = generator.random() < 0.5
            turns = [(Tier.MESSAGE,)]
            turns += [(Tier.READ,)] if generator.random() < 0.5 else []
            turns += [(Tier.GOLD,)] if generator.random() < (0.8 if success == gold_goes_with_success else 0.1) else []
            turns += [(Tier.ERROR,)] if generator.random() < (0.1 if success else 0.7) else []
            turns.append((Tier.MESSAGE,))
            rows.append(TierRow(task=f"mock/{task}", group=0, success=success, turns=tuple(turns)))
    return rows


def by_tier(report):
    return {t.tier: t for t in report.tiers}


@pytest.mark.parametrize("cells", [(30, 10, 10, 30), (5, 1, 20, 90), (3, 17, 40, 8)])
def test_phi_is_the_correlation_of_two_yes_or_no_variables(cells):
    pairs = [(1, 1)] * cells[0] + [(1, 0)] * cells[1] + [(0, 1)] * cells[2] + [(0, 0)] * cells[3]
    assert phi(*cells) == pytest.approx(stats.pearsonr([p[0] for p in pairs], [p[1] for p in pairs]).statistic)


@pytest.mark.parametrize("cells", [(9, 9, 0, 0), (0, 0, 9, 9), (9, 0, 9, 0), (0, 9, 0, 9), (0, 0, 0, 0)])
def test_phi_cannot_be_told_without_variation(cells):
    assert phi(*cells) is None


def test_a_good_recipe_is_accepted():
    report = calibrate(rollouts(), DENSE.values, SPEC)
    tiers = by_tier(report)
    assert report.accepted, report.problems
    assert tiers[Tier.GOLD].value == pytest.approx(tiers[Tier.GOLD].phi)
    assert tiers[Tier.GOLD].value > 0.5
    assert tiers[Tier.ERROR].value < -0.4
    assert tiers[Tier.ERROR].aligned
    assert tiers[Tier.GOLD].aligned
    assert report.correlation > 0.5
    assert 0 <= report.dead_turns < 0.5
    assert report.recipe.values["gold"] == tiers[Tier.GOLD].value


def test_a_tier_that_says_nothing_gets_0_within_delta():
    read = by_tier(calibrate(rollouts(tasks=400), DENSE.values, SPEC))[Tier.READ]
    assert abs(read.phi) < SPEC.delta
    assert read.value == 0.0
    assert read.kept == ""


def test_a_tier_in_every_rollout_or_in_none_keeps_its_value_and_says_why():
    tiers = by_tier(calibrate(rollouts(), DENSE.values, SPEC))
    for tier in (Tier.MESSAGE, Tier.SOFT):
        assert tiers[tier].phi is None
        assert tiers[tier].value == DENSE.value(tier)
        assert "fewer than 5" in tiers[tier].kept


def test_a_wrong_sign_is_found_on_the_held_out_tasks():
    report = calibrate(rollouts(gold_goes_with_success=False), DENSE.values, SPEC)
    assert not report.accepted
    [problem] = [p for p in report.problems if p.startswith("`gold` should have a positive advantage")]
    gold = by_tier(report)[Tier.GOLD]
    assert f"over {gold.held_out_turns} held-out turns; it goes with failure, phi -0." in problem and gold.held_out_turns > 0


def test_rewards_that_say_nothing_about_success_are_a_problem():
    report = calibrate(rollouts(), DENSE.values, replace(SPEC, delta=2.0))  # every value that can be told becomes 0
    assert any("held-out" in p for p in report.problems)


def test_without_held_out_tasks_nothing_is_accepted():
    report = calibrate(rollouts(), DENSE.values, replace(SPEC, holdout=0.0))
    assert not report.accepted
    assert report.dead_turns is None
    assert report.correlation is None


def test_rollouts_that_all_end_alike_tell_nothing():
    rows = [replace(row, success=True) for row in rollouts()]
    tiers = by_tier(calibrate(rows, DENSE.values, SPEC))
    assert tiers[Tier.GOLD].kept == "every rollout ended alike"
    assert tiers[Tier.GOLD].value == 1.0


def test_the_order_of_rollouts_does_not_matter():
    rows = rollouts()
    shuffled = random.Random(5).sample(rows, len(rows))
    first, second = calibrate(rows, DENSE.values, SPEC), calibrate(shuffled, DENSE.values, SPEC)
    assert first.recipe == second.recipe
    assert by_tier(first)[Tier.GOLD].advantage == pytest.approx(by_tier(second)[Tier.GOLD].advantage)


def test_gradient_shares_and_dead_turns_by_hand():
    # One task per side of the split; in each group one success with a gold turn and one failure with a message.
    rows = [
        row
        for task in ("mock/a", "mock/b")
        for row in (
            TierRow(task=task, group=0, success=True, turns=((Tier.GOLD,),)),
            TierRow(task=task, group=0, success=False, turns=((Tier.MESSAGE,), (Tier.READ,))),
        )
    ]
    report = calibrate(rows, DENSE.values, CalibrationSpec(min_support=99, holdout=0.5))
    shares = {t.tier: t.gradient_share for t in report.tiers}
    # Turn 1: +-1 (returns) +- 0.3 (outcome); turn 2 stands alone: only -0.3. Together 1.3 + 1.3 + 0.3.
    assert shares[Tier.GOLD] == pytest.approx(1.3 / 2.9, abs=1e-4)
    assert shares[Tier.READ] == pytest.approx(0.3 / 2.9, abs=1e-4)
    assert report.dead_turns == 0.0


def test_the_digest_names_values_and_constants():
    values = {Tier.GOLD: 1.0}
    base = freeze(values, SPEC).digest
    assert base == freeze(dict(values), SPEC).digest
    assert base != freeze({Tier.GOLD: 0.9}, SPEC).digest
    assert base != freeze(values, replace(SPEC, delta=0.06)).digest
