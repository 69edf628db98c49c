"""Choose the best affordable set of offers, exactly: a knapsack with a limit on the number of picks.

"Best" is one total order, so there is exactly one answer: the highest sum of scores; among equals the lowest
sum of prices; among those the lexicographically smallest sorted indices. Callers number the items in the order
of their ids, which makes the last rule "smallest ids".

The way there, each step exact:
  1. the best items that the limits allow, if the budget covers them, are the answer;
  2. an item that enough others beat in score and price can never be needed and is dropped;
  3. one multiplier for money gives an upper bound; items that cannot reach the best known sum are dropped;
  4. a short depth-first search under that bound;
  5. dynamic programming over the (count, spend) pairs that the bound leaves, up to a limit of states; it does not
     see the cap per seller, so with one its answer counts only if it happens to keep the cap;
  6. a long depth-first search, up to a limit of nodes;
  7. otherwise the best set found, with the bound and `optimal` false.
All arithmetic is on integers, so every machine gives the same answer, also when a limit ends the search.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Sequence
from math import gcd
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[Any]

# Below this budget every product of the bound fits 62 bits; above it numpy computes on Python integers.
_NATIVE_BUDGET_MAX = 2**35
_SCORE_MAX = 2**21
_TABLE_BUDGET_MAX = 2**31
_COUNT_STEP = 2**27  # above any sum of 25 scores of 2^21
_SHORT_SEARCH_NODES = 5_000
_LAYER_STATES = 64  # what the fixed cost of a layer amounts to


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a set may hold, and how long to look for it.

    Units:  budget in the unit of the prices, None for no limit; nodes_max counts the steps of the search, states_max
    those of the table. A million of either takes a few tenths of a second.
    """

    budget: int | None
    count_max: int
    per_seller_max: int | None = None
    nodes_max: int = 200_000
    states_max: int = 2_000_000


class Choice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A set of items, and what is known about every other set.

    No set within the limits scores more than upper_bound; where `optimal` is true, upper_bound equals score.
    If the search was cut short but its bound was met all the same, an equally good set may be cheaper.
    """

    picks: tuple[int, ...]
    score: int
    price: int
    upper_bound: int
    optimal: bool
    method: str
    nodes: int


class _Items(msgspec.Struct):
    """The items still in play, as parallel columns; `index` leads back to the caller's numbering."""

    index: list[int]
    score: list[int]
    price: list[int]
    seller: list[int]

    def kept(self, places: Sequence[int]) -> _Items:
        return _Items(
            [self.index[at] for at in places],
            [self.score[at] for at in places],
            [self.price[at] for at in places],
            [self.seller[at] for at in places],
        )


class _Bound(msgspec.Struct):
    """The Lagrangian bound at one multiplier: multiplier / 2^shift score units per unit of money."""

    multiplier: int
    shift: int
    total: int  # in score units times 2^shift
    places: list[int]  # the items of the relaxed optimum, best first
    fitting: list[int]  # the relaxed optimum at the next multiplier up, which the budget covers


def choose(scores: Numbers, prices: Numbers, sellers: Numbers | None, limits: Limits) -> Choice:
    """Find the best set of items within the limits.

    Shapes: scores, prices and sellers (n,), in the order of the items' ids; sellers are small integers.
    Units:  scores in 1..2^21; prices are non-negative integers in the unit of the budget.
    Cost:   O(n log n), then at most states_max states and nodes_max nodes.
    """
    items = _affordable(scores, prices, sellers, limits)
    greedy = _best_within_counts(items.score, items.seller, limits, range(len(items.index)))
    spend = sum(items.price[at] for at in greedy)
    if limits.budget is None or spend <= limits.budget:
        return _closed(items, greedy, "greedy", 0)
    items = items.kept(_undominated(items, limits))
    unit = gcd(limits.budget, *items.price)
    items = msgspec.structs.replace(items, price=[price // unit for price in items.price])
    choice = _choose_under_budget(items, msgspec.structs.replace(limits, budget=limits.budget // unit))
    return msgspec.structs.replace(choice, price=choice.price * unit)


def _affordable(scores: Numbers, prices: Numbers, sellers: Numbers | None, limits: Limits) -> _Items:
    """Keep what the budget covers, best first: (score down, price up, index up)."""
    if len(scores) and not 1 <= int(scores.min()) <= int(scores.max()) <= _SCORE_MAX:
        raise ValueError("a score lies in 1..2^21")
    within = [True] * len(prices) if limits.budget is None else prices <= limits.budget
    index = np.flatnonzero(np.asarray(within, dtype=bool))
    if prices.dtype == object:
        ranked = sorted(index.tolist(), key=lambda at: (-int(scores[at]), prices[at], at))
        index = np.array(ranked, dtype=np.int64)
    else:
        index = index[np.lexsort((prices[index], -scores[index]))]
    seller = [0] * len(index) if sellers is None else sellers[index].tolist()
    return _Items(index.tolist(), scores[index].tolist(), prices[index].tolist(), seller)


def _per_seller(limits: Limits) -> int:
    return limits.count_max if limits.per_seller_max is None else min(limits.per_seller_max, limits.count_max)


def _best_within_counts(
    worth: Sequence[int] | Numbers, seller: Sequence[int], limits: Limits, ranked: Sequence[int]
) -> list[int]:
    """Take items of positive worth in the given order until the counts are full: optimal without a budget."""
    cap, used, taken = _per_seller(limits), Counter[int](), list[int]()
    for at in ranked:
        if len(taken) == limits.count_max or worth[at] <= 0:
            break
        if used[seller[at]] < cap:
            used[seller[at]] += 1
            taken.append(at)
    return taken


def _undominated(items: _Items, limits: Limits) -> list[int]:
    """Drop each item that some better item could replace in every set that holds it.

    A better item has no lower score, no higher price and, where both are equal, a smaller index. The other picks
    of a set block at most one better item each, and a seller's better items beyond its cap block nothing more;
    so count_max of them, counting at most the cap of each seller, always leave one free. Inside one seller the
    cap alone is enough, since the item itself takes one of that seller's places.
    """
    cap, room = _per_seller(limits), limits.count_max
    one_seller = limits.per_seller_max is None
    prices: list[int] = []
    of_seller: dict[int, list[int]] = {}
    kept: list[int] = []
    ceiling: int | None = None
    for at, price in enumerate(items.price):
        if ceiling is not None and price >= ceiling:
            continue
        own = prices if one_seller else of_seller.setdefault(items.seller[at], [])
        if len(own) >= cap and own[cap - 1] <= price:
            continue
        kept.append(at)
        _note_price(own, prices, price, cap)
        ceiling = prices[room - 1] if len(prices) >= room else None
    return kept


def _note_price(own: list[int], prices: list[int], price: int, cap: int) -> None:
    """Remember a price among the `cap` lowest of its seller, and among the lowest of all."""
    insort(prices, price)
    if own is not prices:
        insort(own, price)
        if len(own) > cap:
            prices.remove(own.pop())


def _choose_under_budget(items: _Items, limits: Limits) -> Choice:
    """Close the gap between the best set known and the bound, or say how far it got."""
    bound = _tightest_bound(items, limits)
    start = max(_starts(items, bound, limits), key=lambda places: _merit(items, places))
    reached = sum(items.score[at] for at in start)
    picked = {items.index[at] for at in start}
    items = items.kept(_able_to_reach(items, bound, limits, reached))
    start = [at for at, index in enumerate(items.index) if index in picked]
    short = msgspec.structs.replace(limits, nodes_max=min(_SHORT_SEARCH_NODES, limits.nodes_max))
    best, nodes, closed = _search(items, bound, short, start)
    if closed:
        return _closed(items, best, "branch_and_bound", nodes)
    table = _table(items, bound, limits, best)
    if table is not None and _keeps_cap(items, table, limits):
        return _closed(items, table, "dynamic_programming", nodes)
    best, nodes, closed = _search(items, bound, limits, best)
    if closed:
        return _closed(items, best, "branch_and_bound", nodes)
    relaxed = bound.total >> bound.shift if table is None else sum(items.score[at] for at in table)
    return _open(items, best, relaxed, nodes)


def _open(items: _Items, places: Sequence[int], ceiling: int, nodes: int) -> Choice:
    choice = _closed(items, places, "branch_and_bound", nodes)
    return msgspec.structs.replace(choice, upper_bound=ceiling, optimal=ceiling == choice.score)


def _keeps_cap(items: _Items, places: Sequence[int], limits: Limits) -> bool:
    used = Counter(items.seller[at] for at in places)
    return limits.per_seller_max is None or max(used.values()) <= limits.per_seller_max


def _closed(items: _Items, places: Sequence[int], method: str, nodes: int) -> Choice:
    score, spend = sum(items.score[at] for at in places), sum(items.price[at] for at in places)
    return Choice(tuple(sorted(items.index[at] for at in places)), score, spend, score, True, method, nodes)


def _merit(items: _Items, places: Sequence[int]) -> tuple[int, int, list[int]]:
    """Order sets from worst to best, as the whole module understands it."""
    names = sorted(items.index[at] for at in places)
    return (
        sum(items.score[at] for at in places),
        -sum(items.price[at] for at in places),
        [-name for name in names],
    )


def _tightest_bound(items: _Items, limits: Limits) -> _Bound:
    """Find the multiplier for money whose bound is lowest.

    The bound is convex in the multiplier and its slope is budget minus relaxed spend, so the minimum lies where
    that spend first fits the budget. The two limits on counts stay exact inside the relaxation.

    Source: Fisher 1981, The Lagrangian relaxation method, section 3; Martello and Toth 1990, chapter 2.
    """
    budget = limits.budget or 0
    native = budget < _NATIVE_BUDGET_MAX
    shift = min(budget.bit_length() + 1, 35)
    score = np.array(items.score, dtype=np.int64 if native else object) * (1 << shift)
    price = np.array(items.price, dtype=np.int64 if native else object)
    seller = items.seller

    def at(multiplier: int) -> tuple[_Bound, bool]:
        worth = score - price * multiplier
        places = _relaxed(worth, seller, limits)
        total = multiplier * budget + sum(worth[places].tolist())
        fits = sum(price[places].tolist()) <= budget
        return _Bound(multiplier, shift, total, places, places), fits

    high = 1
    while not at(high)[1]:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if at(middle)[1] else (middle, high)
    above = at(high)[0]
    tightest = min((at(low)[0], above), key=lambda bound: bound.total)
    return msgspec.structs.replace(tightest, fitting=above.places)


def _relaxed(worth: Numbers, seller: list[int], limits: Limits) -> list[int]:
    """Take the best items by worth under the counts alone; equal worth goes to the smaller place."""
    if limits.per_seller_max is None and len(worth) > limits.count_max:
        edge = np.partition(worth, len(worth) - limits.count_max)[len(worth) - limits.count_max]
        front = np.flatnonzero((worth >= max(edge, 1)).astype(bool))
    else:
        front = np.flatnonzero((worth > 0).astype(bool))
    ranked = front[np.argsort(-worth[front], kind="stable")].tolist()
    return _best_within_counts(worth, seller, limits, ranked)


def _starts(items: _Items, bound: _Bound, limits: Limits) -> list[list[int]]:
    """Fill the budget greedily in three orders (relaxed worth, score, score for money), then exchange."""
    worth = [
        (score << bound.shift) - bound.multiplier * price
        for score, price in zip(items.score, items.price, strict=True)
    ]
    by_worth = sorted(range(len(worth)), key=lambda at: -worth[at])
    dear = 1 + max(items.price)
    by_ratio = sorted(range(len(worth)), key=lambda at: -(items.score[at] * dear // max(items.price[at], 1)))
    ranked = [by_worth, range(len(worth)), by_ratio, sorted(bound.fitting), _cheapest_first(items)]
    return [_exchanged(items, limits, _filled(items, limits, one)) for one in ranked]


def _cheapest_first(items: _Items) -> list[int]:
    return sorted(range(len(items.price)), key=lambda at: items.price[at])


def _exchanged(items: _Items, limits: Limits, places: list[int]) -> list[int]:
    """Trade single picks for the best ones the money left allows, until a pass changes nothing."""
    price, cap = np.array(items.price), _per_seller(limits)
    left = (limits.budget or 0) - sum(items.price[at] for at in places)
    used = Counter(items.seller[at] for at in places)
    chosen, changed = set(places), True
    while changed:
        changed = False
        for at in sorted(chosen, reverse=True):
            # Items stand in falling score, so the first affordable one is the best.
            for other in np.flatnonzero((price[:at] <= left + items.price[at]).astype(bool)).tolist():
                seller = items.seller[other]
                free = used[seller] - (seller == items.seller[at]) < cap
                if other not in chosen and free and items.score[other] > items.score[at]:
                    chosen ^= {at, other}
                    used[items.seller[at]] -= 1
                    used[seller] += 1
                    left += items.price[at] - items.price[other]
                    changed = True
                    break
    return sorted(chosen)


def _filled(items: _Items, limits: Limits, ranked: Sequence[int]) -> list[int]:
    cap, left, used, taken = _per_seller(limits), limits.budget or 0, Counter[int](), list[int]()
    for at in ranked:
        if len(taken) == limits.count_max:
            break
        if items.price[at] <= left and used[items.seller[at]] < cap:
            used[items.seller[at]] += 1
            left -= items.price[at]
            taken.append(at)
    return taken


def _able_to_reach(items: _Items, bound: _Bound, limits: Limits, reached: int) -> list[int]:
    """Keep the items with which a set could still score `reached`.

    Forcing an item in costs at least its distance to the weakest item of the relaxed optimum.
    """
    places = bound.places
    worths = [
        (score << bound.shift) - bound.multiplier * price
        for score, price in zip(items.score, items.price, strict=True)
    ]
    weakest = min(worths[at] for at in places) if len(places) == limits.count_max else 0
    spare = bound.total - (reached << bound.shift)
    return [at for at, worth in enumerate(worths) if weakest - worth <= spare]


def _search(
    items: _Items, bound: _Bound, limits: Limits, start: Sequence[int]
) -> tuple[list[int], int, bool]:
    """Search depth first for the best set; answer the set, the nodes visited and whether all were covered.

    One integer per item carries the whole order: score above price above index. Items stand in falling worth at
    the multiplier, so the best continuation of a set is the run of items that follows it.
    """
    search = _Search(items, bound, limits)
    search.best = sum(search.value[search.place[at]] for at in start)
    search.best_places = [search.place[at] for at in start]
    closed = search.descend(0, limits.budget or 0, limits.count_max, 0)
    return [search.ranked[place] for place in search.best_places], search.nodes, closed


class _Search:
    """Hold the columns and the best set of one depth-first search."""

    def __init__(self, items: _Items, bound: _Bound, limits: Limits) -> None:
        size, money = len(items.index), (limits.budget or 0) + 1
        rank = {index: place for place, index in enumerate(sorted(items.index))}
        value = [
            ((score * money - price) << size) | (1 << (size - 1 - rank[index]))
            for index, score, price in zip(items.index, items.score, items.price, strict=True)
        ]
        # The multiplier in the unit of `value`: money is worth `multiplier * money + 2^shift` there, where the
        # second part pays for the price inside the value.
        self.rate = max(bound.multiplier * money - (1 << bound.shift), 0) << size
        worth = [(value[at] << bound.shift) - self.rate * items.price[at] for at in range(size)]
        self.ranked = sorted(range(size), key=lambda at: -worth[at])
        self.place = {at: place for place, at in enumerate(self.ranked)}
        self.shift = bound.shift
        self.value = [value[at] for at in self.ranked]
        self.price = [items.price[at] for at in self.ranked]
        self.seller = [items.seller[at] for at in self.ranked]
        self.worth = [max(worth[at], 0) for at in self.ranked]
        self.sums = [0]
        for one in self.worth:
            self.sums.append(self.sums[-1] + one)
        self.cheapest = self.price[:]
        for at in range(size - 2, -1, -1):
            self.cheapest[at] = min(self.cheapest[at], self.cheapest[at + 1])
        self.capped = limits.per_seller_max is not None
        self.cap = _per_seller(limits)
        self.used: Counter[int] = Counter()
        # A value has one bit per item, so a node costs more where many items are left.
        self.nodes, self.nodes_max, self.node_weight = 0, limits.nodes_max, 1 + size // 512
        self.path: list[int] = []
        self.best = 0
        self.best_places: list[int] = []

    def descend(self, at: int, left: int, room: int, value: int) -> bool:
        """Try every continuation of the current set; answer whether none was left out."""
        if value > self.best:
            self.best, self.best_places = value, self.path[:]
        size, price, seller = len(self.price), self.price, self.seller
        # Only a sum above this can still be a better set.
        needed = ((self.best + 1 - value) << self.shift) - self.rate * left
        while room and at < size and self.cheapest[at] <= left and self._rest(at, room) >= needed:
            self.nodes += self.node_weight
            if self.nodes > self.nodes_max:
                return False
            if price[at] <= left and (not self.capped or self.used[seller[at]] < self.cap):
                self.path.append(at)
                self.used[seller[at]] += 1
                closed = self.descend(at + 1, left - price[at], room - 1, value + self.value[at])
                self.used[seller[at]] -= 1
                self.path.pop()
                if not closed:
                    return False
                needed = ((self.best + 1 - value) << self.shift) - self.rate * left
            at += 1
        return True

    def _rest(self, at: int, room: int) -> int:
        """Bound what the items from here on can add."""
        if not self.capped:
            return self.sums[min(at + room, len(self.price))] - self.sums[at]
        total, used = 0, dict[int, int]()
        for place in range(at, len(self.price)):
            seller = self.seller[place]
            taken = used.get(seller, self.used[seller])
            if taken < self.cap:
                used[seller] = taken + 1
                total += self.worth[place]
                room -= 1
                if not room:
                    break
        return total


class _Layer(msgspec.Struct):
    """The states left after one item: the state each came from, and whether it took the item."""

    parent: Numbers
    taken: Numbers


def _table(items: _Items, bound: _Bound, limits: Limits, known: Sequence[int]) -> list[int] | None:
    """Work through the reachable (count, spend) pairs, keeping the best score of each; None beyond the limit.

    Items come in falling index and an equal sum prefers to take, so that the walk back finds the smallest indices.
    A state goes if its count reaches its score for less money, or if the bound says it cannot reach what is known.

    Cost:   at most states_max states.
    Source: Kellerer, Pferschy and Pisinger 2004, sections 3.4 (lists of states) and 9.7 (cardinality).
    """
    budget, room = limits.budget or 0, limits.count_max
    if budget >= _TABLE_BUDGET_MAX:
        return None
    span = budget + 1
    ranked = sorted(range(len(items.index)), key=lambda at: items.index[at])
    rest = _best_rests(items, ranked, bound, room)
    reached = sum(items.score[at] for at in known)
    key, score = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
    layers: list[_Layer] = []
    states = 0
    for layer in range(len(ranked) - 1, -1, -1):
        item = ranked[layer]
        key, score, parent, taken = _with_item(key, score, items.score[item], items.price[item], span, room)
        states += len(key) + _LAYER_STATES
        if states > limits.states_max:
            return None
        reached = max(reached, int(score.max()))
        count, spend = np.divmod(key, span)
        hope = (score << bound.shift) + bound.multiplier * (budget - spend) + rest[layer, room - count]
        kept = _undominated_states(key, score, count, hope >= reached << bound.shift)
        key, score = key[kept], score[kept]
        layers.append(_Layer(parent[kept], taken[kept]))
    return _walked(key % span, score, layers, ranked)


def _best_rests(items: _Items, ranked: list[int], bound: _Bound, room: int) -> Numbers:
    """Bound what the first `layer` items can add in `count` picks.

    Shapes: (n + 1, room + 1), indexed by layer and count.
    """
    rests = np.zeros((len(ranked) + 1, room + 1), dtype=np.int64)
    best: list[int] = []
    for layer, at in enumerate(ranked, start=1):
        insort(best, -max((items.score[at] << bound.shift) - bound.multiplier * items.price[at], 0))
        del best[room:]
        rests[layer, 1 : len(best) + 1] = best
        rests[layer, len(best) + 1 :] = 0
    return -np.cumsum(rests, axis=1)


def _with_item(
    key: Numbers, score: Numbers, item_score: int, item_price: int, span: int, room: int
) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    """Merge the states that take an item with those that leave it; of equal keys the taking one stands first."""
    able = np.flatnonzero((key // span < room) & (key % span + item_price < span))
    keys = np.concatenate((key[able] + (span + item_price), key))
    scores = np.concatenate((score[able] + item_score, score))
    parents = np.concatenate((able, np.arange(len(key))))
    order = np.argsort(keys, kind="stable")
    return keys[order], scores[order], parents[order], order < len(able)


def _undominated_states(key: Numbers, score: Numbers, count: Numbers, hopeful: Numbers) -> Numbers:
    """Keep the hopeful states whose score no cheaper state of the same count has."""
    lifted = score + count * _COUNT_STEP
    rising = np.ones(len(key), dtype=bool)
    rising[1:] = lifted[1:] > np.maximum.accumulate(lifted)[:-1]
    kept = np.flatnonzero(rising & hopeful)
    # Scores rise inside a count, so the last of equal keys is the best of them.
    last = np.ones(len(kept), dtype=bool)
    last[:-1] = key[kept[1:]] != key[kept[:-1]]
    return kept[last]


def _walked(spend: Numbers, score: Numbers, layers: list[_Layer], ranked: list[int]) -> list[int]:
    """Walk back from each best final state, and give the set with the smallest indices."""
    best = np.flatnonzero(score == score.max())
    cheapest = best[spend[best] == spend[best].min()].tolist()
    return min((_path(state, layers, ranked) for state in cheapest), key=lambda path: path[0])[1]


def _path(state: int, layers: list[_Layer], ranked: list[int]) -> tuple[list[int], list[int]]:
    numbers, places = [], []
    for number, layer in enumerate(reversed(layers)):
        if layer.taken[state]:
            numbers.append(number)
            places.append(ranked[number])
        state = int(layer.parent[state])
    return numbers, places
