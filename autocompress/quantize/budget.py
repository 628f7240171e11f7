"""The multiple-choice knapsack problem: one option per row within a budget, solved exactly or greedily."""

from collections.abc import Sequence

import numpy as np

from autocompress.errors import CompressionError

# The options of a row: cost and loss of each.
Row = Sequence[tuple[int, float]]


def solve_exactly(rows: Sequence[Row], budget: int) -> list[int]:
    """Return the index of the option of each row that minimizes the sum of losses within the budget.

    Dynamic programming over the states that are non-dominated in cost and loss (Nemhauser and Ullmann 1969). Costs
    are integers, so sums are exact; of equal losses the cheaper one is taken. The number of states is at most the
    budget, and far smaller where rows share costs, as the layers of a network do.

    Args:
        rows: Cost and loss of every option; costs are not negative.
        budget: Largest sum of costs.

    Raises:
        CompressionError: The cheapest options exceed the budget.

    Example:
        >>> solve_exactly([[(1, 5.0), (2, 1.0)], [(1, 1.0), (4, 0.0)]], 4)
        [1, 0]
    """
    remaining = _cheapest_remaining_costs(rows)
    _require_budget(remaining[0], budget)
    costs, losses = np.zeros(1, np.int64), np.zeros(1)
    back_pointers: list[tuple[np.ndarray, np.ndarray]] = []
    for row, after in zip(rows, remaining[1:], strict=True):
        cost = (costs[:, None] + np.array([cost for cost, _ in row], np.int64)).ravel()
        loss = (losses[:, None] + np.array([loss for _, loss in row])).ravel()
        order = np.lexsort((loss, cost))
        # A state is dropped where even the cheapest options of the later rows would exceed the budget.
        order = order[cost[order] <= budget - after]
        sums = loss[order]
        # In order of cost, a state is non-dominated if its loss is below that of every cheaper state.
        best_before = np.concatenate([[np.inf], np.minimum.accumulate(sums)[:-1]])
        states = order[sums < best_before]
        costs, losses = cost[states], loss[states]
        back_pointers.append((states // len(row), states % len(row)))
    # The last state has the largest cost and so the smallest loss.
    state, chosen = len(costs) - 1, []
    for before, choice in reversed(back_pointers):
        chosen.append(int(choice[state]))
        state = int(before[state])
    return chosen[::-1]


def solve_greedily(rows: Sequence[Row], budget: int) -> list[int]:
    """Return options within the budget, by greedy steps from the costliest options downwards.

    Each step takes the option with the smallest increase of the loss per unit of saved cost.

    Raises:
        CompressionError: The cheapest options exceed the budget.

    Example:
        >>> solve_greedily([[(1, 5.0), (2, 1.0)], [(1, 1.0), (4, 0.0)]], 4)
        [1, 0]
    """
    _require_budget(_cheapest_remaining_costs(rows)[0], budget)
    # Of equal costs the smaller loss, because no later step changes the option of a row whose costs are equal.
    chosen = [-max((cost, -loss, -index) for index, (cost, loss) in enumerate(row))[2] for row in rows]
    while sum(row[at][0] for row, at in zip(rows, chosen, strict=True)) > budget:
        _, index, at = min(
            ((row[at][1] - row[now][1]) / (row[now][0] - row[at][0]), index, at)
            for index, (row, now) in enumerate(zip(rows, chosen, strict=True))
            for at in range(len(row))
            if row[at][0] < row[now][0]
        )
        chosen[index] = at
    return chosen


def _cheapest_remaining_costs(rows: Sequence[Row]) -> list[int]:
    """Return the sum of the smallest costs of row ``i`` and all later rows, for each ``i``; the last entry is 0."""
    totals = [0]
    for row in reversed(rows):
        totals.append(totals[-1] + min(cost for cost, _ in row))
    return totals[::-1]


def _require_budget(required: int, budget: int) -> None:
    if required > budget:
        raise CompressionError(f"the cheapest choices cost {required:,}, more than the budget of {budget:,}")


SOLVERS = {"exact": solve_exactly, "greedy": solve_greedily}
