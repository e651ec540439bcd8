"""The check of slime's command line: what slime would ignore or misread in silence is refused with the name of the option.

- an unknown option is named with the nearest known one;
- a wrong number of values and an option given twice are refused; wrong types and choices are slime's to refuse;
- options of engines are refused where slime reads none;
- an option's other name, `--name=value`, negative numbers and several values are fine.
"""

from __future__ import annotations

import pytest

from tau2rl.errors import UserError
from tau2rl.slime.options import check, contract, lookup


@pytest.mark.parametrize(
    ("words", "says", "hint"),
    [
        ("--rolout-temperature 1.0", "no option `--rolout-temperature`", "did you mean `--rollout-temperature`?"),
        ("--lr", "`--lr` takes one value, not ``", ""),
        ("--lr 1e-6 1e-5", "`--lr` takes one value, not `1e-6 1e-5`", ""),
        ("--colocate true", "`--colocate` takes no value, not `true`", ""),
        ("--lr 1e-6 --lr 1e-5", "`--lr` is given twice", ""),
        ("--debug-train-only --sglang-mem-fraction-static 0.8", "does not read `--sglang-mem-fraction-static`", "leave it out"),
        ("--debug-train-only --router-policy random", "does not read `--router-policy`", "leave it out"),
        ("--eval-prompt-data", "`--eval-prompt-data` takes one value or more", ""),
    ],
)
def test_a_mistake_is_named(words: str, says: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        check(words.split())
    assert says in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    "words",
    [
        "--lr=1e-6",
        "--sglang-dp-size 2",
        "--sglang-data-parallel-size 2",
        "--rollout-top-k -1",
        "--eval-prompt-data select /a.jsonl mock /b.jsonl",
        "--no-offload-train",
        "--rollout-sample-hook-path a.b --rollout-sample-hook-path a.c",
        "--attention-backend flash",
        "--router-policy consistent_hashing",  # of the router's fork in slime's image
    ],
)
def test_what_slime_reads_is_let_through(words: str) -> None:
    check(words.split())


def test_a_value_in_front_of_every_option_is_refused() -> None:
    with pytest.raises(UserError, match=r"`train\.py` is a value without an option"):
        check(["train.py", "--lr", "1e-6"])


def test_the_contract_says_what_it_was_read_from() -> None:
    assert set(contract().versions) == {"slime", "megatron", "sglang", "sglang_router"}
    assert contract().versions["slime"].startswith("624b824a898a")
    assert lookup("--lr").source == "megatron"
    assert {option.source for option in contract().options.values()} >= {"slime", "megatron", "sglang", "sglang-router"}
