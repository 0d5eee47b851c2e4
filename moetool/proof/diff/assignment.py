"""Which of ``n`` things is which of ``n`` others, so that all pairs together cost least."""

from __future__ import annotations

import math
from collections.abc import Sequence


def assign(costs: Sequence[Sequence[float]]) -> list[int]:
    """Give each row of a square matrix of finite costs a column of its own, at the least total.

    Where every row's cheapest column is another one, that is the answer; else the Hungarian method
    in the form of Jonker and Volgenant: shortest augmenting paths, O(n**3).
    """
    cheapest = [min(range(len(row)), key=row.__getitem__) for row in costs]
    if len(set(cheapest)) == len(costs):
        return cheapest
    n = len(costs)
    row_price, column_price = [0.0] * n, [0.0] * (n + 1)
    row_of: list[int | None] = [None] * (n + 1)  # the last column is where each path begins
    for new in range(n):
        row_of[n] = new
        came_from = _augment(costs, row_price, column_price, row_of)
        end = came_from.pop()
        while end != n:
            before = came_from[end]
            row_of[end] = row_of[before]
            end = before
    result = [0] * n
    for column, row in enumerate(row_of[:n]):
        assert row is not None
        result[row] = column
    return result


def _augment(
    costs: Sequence[Sequence[float]],
    row_price: list[float],
    column_price: list[float],
    row_of: list[int | None],
) -> list[int]:
    """Find the cheapest path to a free column and raise the prices along it.

    Returns for each column the one before it, and behind them the free column.
    """
    n = len(costs)
    distance = [math.inf] * n
    came_from = [n] * n
    visited = [False] * n + [True]
    at = n
    while (row := row_of[at]) is not None:
        visited[at] = True
        step, nearest = math.inf, at
        for column in range(n):
            if visited[column]:
                continue
            reduced = costs[row][column] - row_price[row] - column_price[column]
            if reduced < distance[column]:
                distance[column], came_from[column] = reduced, at
            if distance[column] < step:
                step, nearest = distance[column], column
        for column in range(n + 1):
            if not visited[column]:
                distance[column] -= step
                continue
            holder = row_of[column]
            assert holder is not None
            row_price[holder] += step
            column_price[column] -= step
        at = nearest
    return [*came_from, at]
