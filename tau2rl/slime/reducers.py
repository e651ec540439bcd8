"""Dr. GRPO's denominator for slime: the sum over an episode's tokens divided by a constant, in place of their number.

slime calls `--custom-pg-loss-reducer-function-path` without `args`, so the constant is part of the name that is looked up here:
`constant_1024`. It divides by the number of episodes of the step afterwards (slime/backends/megatron_utils/loss.py:1352-1358).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

PREFIX = "constant_"


def __getattr__(name: str) -> Any:
    number = name.removeprefix(PREFIX)
    if number == name or not number.isdecimal() or int(number) < 1:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def reducer(
        total_lengths: Sequence[int], response_lengths: Sequence[int], loss_masks: Sequence[Any], per_token: bool
    ) -> Callable[[Any], Any]:
        """Over the episodes of a micro-batch, whose tokens' terms lie behind each other in one tensor."""
        assert not per_token  # slime would divide by the number of tokens once more

        def reduce(terms: Any) -> Any:
            parts = terms.split(list(response_lengths), dim=0)
            return sum((part * mask).sum() for part, mask in zip(parts, loss_masks, strict=True)) / int(number)

        return reduce

    return reducer
