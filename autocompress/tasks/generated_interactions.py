"""Generated interactions, for a first run without data: users and items with hidden tastes."""

from functools import lru_cache

import numpy as np

from autocompress.tasks.interactions import Interactions

NOTICE = "no path is set: the interactions are generated, so nothing here says how well a model does on real ones"
TASTES = 8
FEATURES = 6


@lru_cache(maxsize=2)
def generated_interactions(
    users: int = 1000, items: int = 2000, mean: int = 60, least: int = 20, seed: int = 0
) -> Interactions:
    """Return ratings from 1 to 5 of a latent-factor model (Koren et al. 2009), the same for the same arguments.

    A user and an item have eight hidden tastes each, and their product is how much the user likes the item. Which
    items a user meets depends on that and on their popularity, which falls as the inverse square root of the rank;
    the rating is what the user likes, how kind the user and how good the item is, and chance, rounded. Six features
    of each row are noisy views of the item's tastes.

    Args:
        users: How many users.
        items: How many items.
        mean: Interactions of a user in the mean.
        least: The smallest number of them.
        seed: Seeds all of it.

    Example:
        >>> found = generated_interactions(users=30, items=50, mean=12, least=5)
        >>> sorted(set(found.values.tolist()))
        [1.0, 2.0, 3.0, 4.0, 5.0]
    """
    random = np.random.default_rng(seed)
    of_users, of_items = random.normal(size=(users, TASTES)), random.normal(size=(items, TASTES))
    liking = of_users @ of_items.T / np.sqrt(TASTES)
    popularity = -0.5 * np.log(random.permutation(items) + 1)
    # The largest of utility plus Gumbel noise are a draw without repetition (Kool et al. 2019, arXiv:1903.06059).
    order = np.argsort(-(1.5 * liking + popularity + random.gumbel(size=liking.shape)), axis=1)
    counts = np.minimum(least + random.exponential(mean - least, users).astype(np.int64), items)
    who = np.repeat(np.arange(users), counts)
    what = np.concatenate([random.permutation(order[user, :count]) for user, count in enumerate(counts)])
    kindness, quality = 0.4 * random.normal(size=users), 0.4 * random.normal(size=items)
    score = 2.9 + 0.8 * liking[who, what] + kindness[who] + quality[what] + 0.4 * random.normal(size=len(who))
    views = of_items @ random.normal(size=(TASTES, FEATURES)) + random.normal(size=(items, FEATURES))
    return Interactions(
        who.astype(np.str_),
        what.astype(np.str_),
        np.clip(np.round(score), 1, 5),
        False,
        random.random(len(who)),
        views[what].astype(np.float32),
        tuple(f"view {number}" for number in range(FEATURES)),
    )
