"""Grade -> Score: tau2's reward, the partial score, and their shaped sum with every part shown.

Which checks count. `cookbook` and `pipeline` count action, communicate and env-assertion checks whether or not the task's
`reward_basis` names them, as their sources do; DB and NL verdicts are shown with weight 0. `outcome` and `guarded` count
exactly the kinds that the task's `reward_basis` names.
"""

from __future__ import annotations

import math

from tau2rl.rewards.checks import BASIS_KIND, kinds_met
from tau2rl.rewards.presets import Kind, RewardSpec, Shaping, capped
from tau2rl.types import Checks, Episode, Grade, Score

TERMS = ("outcome", "shaping", "steps", "tools")  # the components that sum to `shaped`; the others are shares of checks met


def score(grade: Grade, spec: RewardSpec, *, domain: str, steps: int, invalid_calls: int) -> Score:
    """Our number beside tau2's. A grade without checks was never graded: no partial and no shaped score.

    One of two actions and no assertion met, under the printed cookbook: partial 0.7/2, shaped 0 + 0.3 * 0.35.

    >>> from tau2rl.rewards.presets import PRESETS
    >>> grade = Grade(reward=0.0, checks=Checks(action=(True, False), env_assertion=(False,)), reward_basis=("ENV_ASSERTION",))
    >>> s = score(grade, PRESETS["cookbook"], domain="telecom", steps=9, invalid_calls=0)
    >>> s.task, s.partial, round(s.shaped, 6)
    (0.0, 0.35, 0.105)

    The code behind the cookbook divides by the weights that are there: 0.35/2 / (0.35 + 0.30), times 0.4.

    >>> s = score(grade, PRESETS["pipeline"], domain="telecom", steps=9, invalid_calls=0)
    >>> round(s.partial, 6), round(s.shaped, 6)
    (0.269231, 0.107692)
    """
    if grade.checks is None:
        return Score(task=grade.reward, partial=None, shaped=None, components={})
    shaping = spec.shaping(domain)
    shares = {kind: math.fsum(met) / len(met) for kind, met in kinds_met(grade.checks).items()}
    partial = _partial(grade, spec, shaping)
    terms = {
        "outcome": spec.failure + (spec.success - spec.failure) * grade.reward,
        "shaping": shaping.alpha * partial,
        "steps": 0.0 - capped(spec.step_penalty * steps, spec.step_cap),
        "tools": 0.0 - capped(spec.tool_penalty * invalid_calls, spec.tool_cap),
    }
    return Score(task=grade.reward, partial=partial, shaped=math.fsum(terms.values()), components={**shares, **terms})


def score_episode(episode: Episode, spec: RewardSpec) -> Score | None:
    """The score of an episode; None for one without a grade (FAILED: no evidence about the model)."""
    if episode.grade is None:
        return None
    return score(episode.grade, spec, domain=episode.task.domain, steps=len(episode.turns), invalid_calls=episode.invalid_calls)


def _partial(grade: Grade, spec: RewardSpec, shaping: Shaping) -> float:
    # 0.0 where nothing that counts is there (the sources' choice): the same for every attempt at the task, so no advantage.
    verdicts = kinds_met(grade.checks or Checks())
    named = {BASIS_KIND.get(name) for name in grade.reward_basis}
    counted: list[Kind] = [kind for kind in verdicts if kind in named or not spec.basis_only]
    total = math.fsum(shaping.weights.get(kind, 0.0) for kind in counted)
    if not total:
        return 0.0
    weighted = math.fsum(shaping.weights.get(kind, 0.0) * sum(verdicts[kind]) / len(verdicts[kind]) for kind in counted)
    return weighted / total if spec.normalise else weighted
