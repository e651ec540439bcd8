"""Which tasks come next.

- The chance of a mixed group: closed form against numerical integration.
- Tasks that are neither solved nor hopeless are drawn most; nothing is ever left out for good.
- The choice is a function of (state, seed): the order of the tasks and a trip through JSON change nothing.
- Older evidence fades, and attempts without evidence add none: what FAILED, what nobody graded.
- A run's draws follow from its seed and their number alone.
- Without it every task comes once an epoch; batches all have one size, and no task is twice in one, over the borders of epochs.
- A sampler goes on behind a saved place as if nothing had been.
"""

import json

import pytest
from hypothesis import given, strategies as st
from scipy import integrate, stats

from tau2rl.config import CurriculumConfig
from tau2rl.data.task_sampling import (
    CurriculumSpec,
    CurriculumState,
    ShuffledEpochs,
    TaskSampler,
    choose,
    draw,
    mixed_group_chance,
    observe,
    outcome,
    weight,
)
from tau2rl.types import Episode, Failure, Fault, Grade, Status, StopReason, TaskRef

SPEC = CurriculumSpec(group_size=8, floor=0.05)


@pytest.mark.parametrize(("a", "b", "n"), [(1, 1, 2), (1, 1, 8), (3, 9, 4), (0.5, 20.5, 8), (40, 2, 16)])
def test_the_chance_of_a_mixed_group_matches_integration(a, b, n):
    expected, _ = integrate.quad(lambda p: (1 - p**n - (1 - p) ** n) * stats.beta.pdf(p, a, b), 0, 1, limit=200)
    assert mixed_group_chance(a, b, n) == pytest.approx(expected, abs=1e-6)


def test_weights_fall_towards_both_ends():
    state = CurriculumState(evidence={f"mock/{c}": (float(c), 40.0) for c in (0, 4, 20, 36, 40)})
    w = {c: weight(state, f"mock/{c}", SPEC) for c in (0, 4, 20, 36, 40)}
    assert w[20] > w[4] > w[0]
    assert w[20] > w[36] > w[40]
    assert w[4] == pytest.approx(w[36])
    assert weight(CurriculumState(evidence={"mock/x": (0.0, 4000.0)}), "mock/x", SPEC) == SPEC.floor


def test_drawing_is_weighted_and_keeps_the_tails_alive():
    state = CurriculumState(evidence={"mock/never": (0.0, 400.0), "mock/half": (200.0, 400.0), "mock/always": (400.0, 400.0)})
    draws = [choose(state, list(state.evidence), 1, SPEC, seed=seed)[0] for seed in range(2000)]
    share = {task: draws.count(task) / len(draws) for task in state.evidence}
    weights = {task: weight(state, task, SPEC) for task in state.evidence}
    for task, w in weights.items():
        assert share[task] == pytest.approx(w / sum(weights.values()), abs=0.02)
    assert 0 < share["mock/never"] < 0.1


def test_every_task_has_its_turn_before_any_comes_twice():
    tasks = [f"mock/{i}" for i in range(5)]
    chosen = choose(CurriculumState(), tasks, 12, SPEC, seed=1)
    assert sorted(chosen[:5]) == sorted(chosen[5:10]) == tasks
    assert len(set(chosen[10:])) == 2


def test_no_tasks_give_no_choice():
    assert choose(CurriculumState(), [], 3, SPEC, seed=1) == []


@given(
    evidence=st.dictionaries(
        st.sampled_from([f"retail/{i}" for i in range(9)]), st.integers(0, 6).map(lambda c: (float(c), 6.0))
    ),
    seed=st.integers(0, 2**31 - 1),
    shuffle=st.randoms(use_true_random=False),
)
def test_every_worker_chooses_alike(evidence, seed, shuffle):
    tasks = [f"retail/{i}" for i in range(9)]
    state = CurriculumState(evidence=evidence, updates=3)
    chosen = choose(state, tasks, 4, SPEC, seed=seed)
    shuffle.shuffle(tasks)
    elsewhere = CurriculumState.from_json(json.loads(json.dumps(state.to_json())))
    assert choose(elsewhere, tasks, 4, SPEC, seed=seed) == chosen


def test_evidence_fades_and_gaps_add_none():
    spec = CurriculumSpec(decay=0.5)
    state = observe(CurriculumState(), {"mock/a": [True, True, False, None], "mock/b": [None]}, spec)
    assert state.evidence == {"mock/a": (2.0, 3.0)}
    state = observe(state, {"mock/b": [True]}, spec)
    assert state.evidence == {"mock/a": (1.0, 1.5), "mock/b": (1.0, 1.0)}
    assert state.updates == 2


def test_a_task_that_becomes_learnable_comes_back():
    state = CurriculumState(evidence={"mock/a": (0.0, 64.0)})
    before = weight(state, "mock/a", SPEC)
    for _ in range(5):
        state = observe(state, {"mock/a": [True, False] * 4}, SPEC)
    assert weight(state, "mock/a", SPEC) > 2 * before


@pytest.mark.parametrize("broken", [{"group_size": 1}, {"floor": 0.0}, {"decay": 0.0}, {"prior_success": 0.0}])
def test_constants_without_a_meaning_are_refused(broken):
    with pytest.raises(ValueError, match=r">= 2|positive"):
        CurriculumSpec(**broken)


def test_a_draw_follows_from_the_seed_and_its_number():
    tasks = [f"retail/{i}" for i in range(40)]
    draws = {
        (seed, number): tuple(draw(CurriculumState(), tasks, 4, SPEC, seed=seed, number=number))
        for seed in (1, 2)
        for number in (1, 2)
    }
    assert len(set(draws.values())) == 4
    assert tuple(draw(CurriculumState(), tasks[::-1], 4, SPEC, seed=2, number=1)) == draws[2, 1]


def test_only_a_graded_episode_has_an_outcome():
    task = TaskRef(domain="mock", task_id="a", split="base")

    def ended(status: Status, reward: float | None) -> Episode:
        grade = None if reward is None else Grade(reward=reward, checks=None, reward_basis=())
        broken = Failure(fault=Fault.USER, kind="UserSimulatorFailure", message="gone") if status is Status.FAILED else None
        return Episode(
            task=task,
            seed=1,
            status=status,
            stop_reason=StopReason.USER_STOP,
            token_ids=(),
            turns=(),
            messages=(),
            grade=grade,
            failure=broken,
        )

    assert outcome(ended(Status.COMPLETED, 1.0)) is True
    assert outcome(ended(Status.TRUNCATED, 0.0)) is False
    assert outcome(ended(Status.COMPLETED, 0.5)) is False
    assert outcome(ended(Status.COMPLETED, None)) is None
    assert outcome(ended(Status.FAILED, None)) is None


def sampler(count: int, *, enabled: bool = False) -> TaskSampler:
    return TaskSampler([f"mock/{i}" for i in range(count)], CurriculumConfig(enabled=enabled), group_size=4, seed=7)


@given(count=st.integers(1, 12), size=st.integers(1, 30), batches=st.integers(1, 12))
def test_batches_have_one_size_and_epochs_every_task_once(count, size, batches):
    tasks = sampler(count)
    taken = [tasks.sample(size) for _ in range(batches)]
    assert {len(batch) for batch in taken} == {size}
    if size <= count:
        assert all(len(set(batch)) == size for batch in taken)
    everything = [key for batch in taken for key in batch]
    seen = {key: everything.count(key) for key in everything}
    whole = len(everything) // count  # epochs that are over
    assert all(times in (whole, whole + 1) for times in seen.values())
    assert whole == 0 or len(seen) == count


def test_epochs_are_shuffled_by_the_seed():
    orders = [ShuffledEpochs(20, seed=seed).take(20) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    epochs = ShuffledEpochs(20, seed=1)
    assert epochs.take(20) != epochs.take(20)
    with pytest.raises(ValueError, match="nothing to take from"):
        ShuffledEpochs(0, seed=1)


@pytest.mark.parametrize("enabled", [False, True])
def test_a_sampler_goes_on_behind_a_saved_place(enabled):
    def go_on(tasks):
        taken = tasks.sample(3)
        tasks.observe({key: [True, False, None] for key in taken})
        return taken

    whole = sampler(7, enabled=enabled)
    for _ in range(4):
        go_on(whole)
    resumed = sampler(7, enabled=enabled)
    resumed.restore(json.loads(json.dumps(whole.state())))
    assert [go_on(resumed) for _ in range(5)] == [go_on(whole) for _ in range(5)]
    assert bool(resumed.known.evidence) is enabled
