"""Unbiased estimates of pass@k and pass^k from n attempts with c successes.

pass@k (any of k attempts succeeds): 1 - C(n-c, k) / C(n, k), Chen et al. 2021 (arXiv 2107.03374).
pass^k (all of k attempts succeed):  C(c, k) / C(n, k), Yao et al. 2024, tau-bench (arXiv 2406.12045).
`1 - (1 - c/n)^k` is biased and is not used anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

Estimator = Callable[[int, int, int], float]


@lru_cache(maxsize=65536)
def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that at least one of k of the n attempts succeeded. Integers all the way: exact, whatever the size of n.

    >>> pass_at_k(4, 1, 1), pass_at_k(4, 1, 2), pass_at_k(4, 1, 4)
    (0.25, 0.5, 1.0)
    """
    _check(n, c, k)
    every = math.comb(n, k)
    return (every - math.comb(n - c, k)) / every


@lru_cache(maxsize=65536)
def pass_hat_k(n: int, c: int, k: int) -> float:
    """The chance that all of k of the n attempts succeeded.

    >>> pass_hat_k(4, 3, 1), pass_hat_k(4, 3, 2), pass_hat_k(4, 3, 4)
    (0.75, 0.5, 0.0)
    """
    _check(n, c, k)
    return math.comb(c, k) / math.comb(n, k)


def measures(largest_k: int) -> list[tuple[str, Estimator, int]]:
    """Name, estimator and k of every number of a report, in its order.

    >>> [name for name, _, _ in measures(2)]
    ['pass@1', 'pass@2', 'pass^1', 'pass^2']
    """
    families: tuple[tuple[str, Estimator], ...] = (("pass@", pass_at_k), ("pass^", pass_hat_k))
    return [(f"{name}{k}", estimator, k) for name, estimator in families for k in range(1, largest_k + 1)]


def _check(n: int, c: int, k: int) -> None:
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"need 0 <= c <= n and 1 <= k <= n, got n={n}, c={c}, k={k}")
