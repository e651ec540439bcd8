"""What a policy fails at, as what new tasks have to exercise: clusters of failures, and in which order they get tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Cell = tuple[Any, ...]  # a place on a generator's grid, without a cluster
MOST_TURNS = 400  # of a plan: a cluster with a smaller share gets no task of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class Focus:
    """What the gold of a task must have: `Focus(rule="cancel.reason")`, `Focus(problem="bad_vpn", tool="disconnect_vpn")`."""

    tool: str = ""  # a call of this tool, among its writes; of telecom, among what puts its problems right
    problem: str = ""  # of telecom: this problem, of the phone or its line
    rule: str = ""  # a request that this rule of the policy forbids
    asks: bool = False  # something that must be said


ANYTHING = Focus()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cluster:
    """Failures that went wrong alike: `Cluster(name="wrong_argument", argument="reason", focus=Focus(tool="cancel..."), ...)`."""

    name: str  # of `tau2rl blame`
    argument: str  # the argument that was wrong, "" where none was
    focus: Focus
    cells: tuple[Cell, ...]  # of the tasks that failed, in the grid that is asked for: ((3, "6-9"), ...), ((2, "mms", "hard"),)
    failures: tuple[str, ...]  # "RUN: domain/task#attempt"

    @property
    def about(self) -> str:
        """The problem, and the rule or the tool: `cancel_pending_order`, `bad_vpn/disconnect_vpn`."""
        return "/".join(filter(None, (self.focus.problem, self.focus.rule or self.focus.tool)))

    @property
    def key(self) -> str:
        """What names it: `wrong_argument/cancel_pending_order/reason`, `missing_follow_up/bad_vpn/disconnect_vpn`."""
        return "/".join(filter(None, (self.name, self.about, self.argument)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """What runs failed at, in one domain."""

    clusters: tuple[Cluster, ...]  # the largest first
    runs: tuple[Mapping[str, Any], ...]  # {"run", "digest", "episodes_sha256"}
    attempts: int
    left_out: Mapping[str, int]  # what was not the agent's fault, by fault and name
    tasks: frozenset[tuple[str, str]]  # (user, what `Draft.same` has) of the tasks that were played

    def card(self, made: Mapping[str, int]) -> dict[str, Any]:
        """For the data card, JSON-ready; `made`: how many tasks each cluster came to."""
        total = sum(len(cluster.failures) for cluster in self.clusters)
        return {
            "runs": [dict(run) for run in self.runs],
            "attempts": self.attempts,
            "failures": total,
            "left_out": dict(self.left_out),
            "clusters": [
                {
                    "name": cluster.name,
                    "about": cluster.about,
                    "problem": cluster.focus.problem,
                    "tool": cluster.focus.tool,
                    "argument": cluster.argument,
                    "rule": cluster.focus.rule,
                    "asks": cluster.focus.asks,
                    "share": round(len(cluster.failures) / total, 4),
                    "tasks": made.get(cluster.key, 0),
                    "failures": list(cluster.failures),
                }
                for cluster in self.clusters
            ],
        }


def calls_in_words(calls: Sequence[Mapping[str, Any]]) -> str:
    """Calls as they are compared, in any order: `[{"name": ..., "arguments": {...}}, ...]`."""
    return "\n".join(sorted(str({"name": call["name"], "arguments": call["arguments"]}) for call in calls))


def turns(clusters: Sequence[Cluster]) -> list[tuple[Cell, Cluster]]:
    """(cell, cluster) of one task after another: clusters in the share of their failures, evenly mixed, their cells in turn.

    >>> cells, none = ((1, "0-2"), (2, "0-2")), Focus()
    >>> a = Cluster(name="a", argument="", focus=none, cells=cells, failures=("x", "y", "z"))
    >>> b = Cluster(name="b", argument="", focus=none, cells=cells, failures=("u",))
    >>> [f"{cluster.name}{cell[0]}" for cell, cluster in turns([a, b])][:5]
    ['a1', 'a2', 'b1', 'a1', 'a2']
    """
    total = sum(len(cluster.failures) for cluster in clusters)
    credit = dict.fromkeys(range(len(clusters)), 0)
    taken = dict.fromkeys(range(len(clusters)), 0)
    out: list[tuple[Cell, Cluster]] = []
    for _ in range(min(max(total, 20), MOST_TURNS)):
        for index, cluster in enumerate(clusters):
            credit[index] += len(cluster.failures)
        first = max(credit, key=lambda index: (credit[index], -index))
        credit[first] -= total
        cluster = clusters[first]
        out.append((cluster.cells[taken[first] % len(cluster.cells)], cluster))
        taken[first] += 1
    return out
