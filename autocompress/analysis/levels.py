"""Choice of the candidates of a front that a service holds in memory."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from autocompress.analysis.pareto import numeric_column, primary_objectives, sort_by_cost
from autocompress.core.run_info import ObjectiveSpec


def select_levels(
    front: pd.DataFrame, objectives: Sequence[ObjectiveSpec], count: int, recommended: str = ""
) -> list[str]:
    """Return ids of the front whose costs are spread evenly on a logarithmic scale, the cheapest first.

    The candidate with the best score, the recommended one and the cheapest one are among them, in this order of
    precedence. Of equal scores only the cheapest candidate counts.

    Args:
        front: Rows of the front.
        objectives: Objectives of the run.
        count: Largest number of ids.
        recommended: Id of the recommended candidate; empty if there is none.
    """
    cost, score = primary_objectives(objectives)
    rows = sort_by_cost(front, objectives)
    # Rows of a front in more than two objectives may be worse in both of the first ones.
    sign = 1 if score.is_maximized else -1
    values = sign * numeric_column(rows, score.name).to_numpy()
    is_better = values > np.concatenate([[-np.inf], np.maximum.accumulate(values)[:-1]])
    is_wanted = is_better | (rows["id"] == recommended).to_numpy()
    rows = rows[is_wanted]
    ids = rows["id"].astype(str).tolist()
    if len(ids) <= count:
        return ids
    # A cost of 0 has no logarithm.
    costs = np.log(np.maximum(numeric_column(rows, cost.name).to_numpy(), 1e-9))
    chosen = list(dict.fromkeys([len(ids) - 1, ids.index(recommended) if recommended in ids else 0, 0]))[:count]
    while len(chosen) < count:
        # The row farthest from all that are chosen.
        distances = np.abs(costs[:, None] - costs[chosen]).min(1)
        distances[chosen] = -1.0
        chosen.append(int(distances.argmax()))
    return [ids[at] for at in sorted(chosen)]
