"""One choice a row under a budget: the multiple-choice knapsack problem, solved exactly or greedily."""

from collections.abc import Sequence

import numpy as np

from autocompress.errors import CompressionError

Row = Sequence[tuple[int, float]]


def solve_exactly(rows: Sequence[Row], budget: int) -> list[int]:
    """Return the choice of each row with the smallest sum of losses whose costs stay within the budget.

    Dynamic programming over the states that no other one beats in both cost and loss (Nemhauser and Ullmann 1969).
    Costs are whole numbers, so that nothing is rounded; of equal losses the cheaper wins. The number of states is
    at most the budget, and far smaller where rows share costs, as the layers of a network do.

    Args:
        rows: The cost and the loss of every choice; costs are not negative.
        budget: The largest sum of costs.

    Raises:
        CompressionError: Not even the cheapest choices fit.

    Example:
        >>> solve_exactly([[(1, 5.0), (2, 1.0)], [(1, 1.0), (4, 0.0)]], 4)
        [1, 0]
    """
    rest = _cheapest_after(rows)
    _check(rest[0], budget)
    costs, losses = np.zeros(1, np.int64), np.zeros(1)
    trail: list[tuple[np.ndarray, np.ndarray]] = []
    for row, after in zip(rows, rest[1:], strict=True):
        cost = (costs[:, None] + np.array([cost for cost, _ in row], np.int64)).ravel()
        loss = (losses[:, None] + np.array([loss for _, loss in row])).ravel()
        order = np.lexsort((loss, cost))
        order = order[cost[order] <= budget - after]
        sums = loss[order]
        best_before = np.concatenate([[np.inf], np.minimum.accumulate(sums)[:-1]])
        kept = order[sums < best_before]
        costs, losses = cost[kept], loss[kept]
        trail.append((kept // len(row), kept % len(row)))
    state, chosen = len(costs) - 1, []
    for before, choice in reversed(trail):
        chosen.append(int(choice[state]))
        state = int(before[state])
    return chosen[::-1]


def solve_greedily(rows: Sequence[Row], budget: int) -> list[int]:
    """Return choices within the budget: from the costliest down, always where a unit of cost is lost most cheaply.

    Raises:
        CompressionError: Not even the cheapest choices fit.

    Example:
        >>> solve_greedily([[(1, 5.0), (2, 1.0)], [(1, 1.0), (4, 0.0)]], 4)
        [1, 0]
    """
    _check(_cheapest_after(rows)[0], budget)
    # Of equal costs the smaller loss: where a row costs nothing, nothing later changes its choice.
    chosen = [max(range(len(row)), key=lambda at, row=row: (row[at][0], -row[at][1])) for row in rows]  # type: ignore[misc]
    while sum(row[at][0] for row, at in zip(rows, chosen, strict=True)) > budget:
        _, index, at = min(
            ((row[at][1] - row[now][1]) / (row[now][0] - row[at][0]), index, at)
            for index, (row, now) in enumerate(zip(rows, chosen, strict=True))
            for at in range(len(row))
            if row[at][0] < row[now][0]
        )
        chosen[index] = at
    return chosen


def _cheapest_after(rows: Sequence[Row]) -> list[int]:
    """Return the cost of the cheapest choices of row ``i`` and all behind it, for each ``i`` and the end."""
    totals = [0]
    for row in reversed(rows):
        totals.append(totals[-1] + min(cost for cost, _ in row))
    return totals[::-1]


def _check(needed: int, budget: int) -> None:
    if needed > budget:
        raise CompressionError(f"the cheapest choices cost {needed:,}, more than the budget of {budget:,}")


SOLVERS = {"exact": solve_exactly, "greedy": solve_greedily}
