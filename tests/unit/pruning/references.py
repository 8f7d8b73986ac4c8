"""Slow references of calibrated methods, in float64; they share no code with the package."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def slow_wanda(weight: Array, inputs: Array, level: str) -> Array:
    """As the paper says it: one comparison group an output."""
    out = weight.copy()
    norms = np.sqrt((inputs**2).sum(0))
    taken = 0
    for row in range(len(weight)):
        scores = np.abs(weight[row]) * norms
        if "of" in level:
            kept, group = map(int, level.split("of"))
            for start in range(0, len(scores), group):
                order = np.argsort(scores[start : start + group], kind="stable")
                out[row, start + order[: group - kept]] = 0
        else:
            count = round(float(level) * (row + 1) * len(scores)) - taken
            taken += count
            out[row, np.argsort(scores, kind="stable")[:count]] = 0
    return out


def slow_sparsegpt(weight: Array, inputs: Array, level: str) -> Array:
    """As the paper says it: column by column, each time the inverse of the Hessian of the columns that are left."""
    rows, columns = weight.shape
    inverses = _inverses(inputs.tobytes(), columns)
    kept, group = map(int, level.split("of")) if "of" in level else (0, 1)
    weight = weight.copy()
    remove = np.zeros(weight.shape, bool)
    taken = 0
    for j in range(columns):
        if group == 1 and j % 128 == 0:
            end = min(j + 128, columns)
            costs = np.stack([weight[:, k] ** 2 / inverses[k][0, 0] for k in range(j, end)], axis=1)
            count = round(float(level) * rows * end) - taken
            taken += count
            chosen = np.argsort(costs, axis=None)[:count]
            remove[:, j:end].flat[chosen] = True
        if group > 1 and j % group == 0:
            for row in range(rows):
                costs = [weight[row, k] ** 2 / inverses[k][0, 0] for k in range(j, j + group)]
                remove[row, j + np.argsort(costs)[: group - kept]] = True
        for row in np.flatnonzero(remove[:, j]):
            weight[row, j:] -= weight[row, j] / inverses[j][0, 0] * inverses[j][0]
            weight[row, j] = 0
    return weight


@cache
def _inverses(inputs: bytes, columns: int) -> list[Array]:
    """The inverse of the Hessian of the columns from each on. Tests ask for those of the same inputs several times."""
    values = np.frombuffer(inputs).reshape(-1, columns)
    hessian = values.T @ values
    hessian += 0.01 * np.diag(hessian).mean() * np.eye(columns)
    return [np.linalg.inv(hessian[j:, j:]) for j in range(columns)]


SLOW = {"wanda": slow_wanda, "sparsegpt": slow_sparsegpt}
