"""The density of each matrix of a model, as numbers and as a picture."""

import csv
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_sparsity.export.cell import Cell
from llm_sparsity.storage.files import atomic

NUMBERED = 16  # layers up to which each cell of the picture shows its number


@dataclass(frozen=True)
class Density:
    """The density of a tensor.

    stack, layer, part: its role, see `TensorRole`.
    matrix: its name within the layer.
    left: number of weights that are not zero.
    size: number of weights of the dense model's tensor.
    """

    stack: str
    layer: int
    part: str
    matrix: str
    left: int
    size: int


def densities(cell: Cell, model: Any) -> list[Density]:
    """The density of each tensor that has a role, in the order of the model; of the experts of a layer, together.

    Args:
        cell: a cell.
        model: its transformers model.
    """
    from llm_sparsity.models.names import ModuleNames

    structure = cell.folder.structure
    sizes, parameters = _dense_sizes(cell), dict(model.named_parameters())
    found: dict[tuple[str, int, str, str], list[int]] = {}
    with cell.folder.open() as reader:
        roles, stored = cell.folder.roles(reader.names), dict[str, list[str]]()
        places = ModuleNames(model).places(reader.names)
        for name, place in places.items():
            if name in roles and place.names:
                stored.setdefault(place.names[0], []).append(name)
        for name in (each for own in parameters for each in stored.get(own, ())):
            # A tensor that the model holds as it is stored is not read again; experts are fused in the model.
            role, place = roles[name], places[name]
            tensor = reader.tensor(name) if place.fused else parameters[place.names[0]]
            matrix = name.removesuffix(".weight").partition(f".{role.layer}.")[2] or name.removesuffix(".weight")
            matrix = re.sub(r"\bexperts\.\d+\b", "experts", matrix)
            counts = found.setdefault((role.stack, role.layer, role.part, matrix), [0, 0])
            counts[0] += int(tensor.count_nonzero())
            # A fused matrix has its dense size. Others are found by body name: fine-tuning changes prefixes.
            counts[1] += tensor.numel() if place.fused else sizes.get(structure.body_name(name), tensor.numel())
    return [Density(*key, *counts) for key, counts in found.items()]


def share_left(rows: Iterable[Density]) -> float:
    """The share of weights that are left; NaN without any."""
    rows = list(rows)
    return sum(row.left for row in rows) / sum(row.size for row in rows) if rows else math.nan


def draw(rows: Sequence[Density], path: Path) -> None:
    """Draw the density of each matrix, a column for each layer, a panel for each stack.

    Args:
        rows: of `densities`.
        path: of the PNG file.
    """
    import matplotlib as mpl
    import matplotlib.pyplot as plt
    import numpy as np

    from llm_sparsity.reporting.figures.style import STYLE

    rows = [row for row in rows if row.layer >= 0 and row.part in ("attention", "mlp")]
    stacks = list(dict.fromkeys(row.stack for row in rows))
    with mpl.rc_context(STYLE):
        names = {stack: list(dict.fromkeys(row.matrix for row in rows if row.stack == stack)) for stack in stacks}
        heights = [len(names[stack]) for stack in stacks]
        figure, axes = plt.subplots(
            len(stacks), 1, figsize=(9, 1.4 + 0.34 * sum(heights) + 0.5 * len(stacks)), squeeze=False,
            height_ratios=heights,
        )  # fmt: skip
        for ax, stack in zip(axes.flat, stacks, strict=True):
            mine = [row for row in rows if row.stack == stack]
            grid = np.full((len(names[stack]), 1 + max(row.layer for row in mine)), np.nan)
            for row in mine:
                grid[names[stack].index(row.matrix), row.layer] = row.left / row.size
            image = ax.imshow(grid, vmin=0, vmax=1, cmap="viridis", aspect="auto")
            ax.set_yticks(range(len(names[stack])), names[stack])
            ax.set_xticks(range(0, grid.shape[1], 1 + grid.shape[1] // 24))
            ax.set_xlabel("Layer, from 0")
            ax.set_title(f"{stack}: {100 * share_left(mine):.3g} % of the weights of these matrices are left")
            ax.grid(visible=False)
            if grid.shape[1] <= NUMBERED:
                for (y, x), value in np.ndenumerate(grid):
                    if not math.isnan(value):
                        shade = "black" if value > 0.6 else "white"
                        ax.text(x, y, f"{100 * value:.0f}", ha="center", va="center", color=shade, fontsize=8)
        bar = figure.colorbar(image, ax=axes, format=mpl.ticker.PercentFormatter(1), pad=0.01)
        bar.set_label("Weights left")
        bar.outline.set_visible(False)
        with atomic(path) as temporary:
            figure.savefig(temporary, format="png", metadata={"Software": None})
        plt.close(figure)


def _dense_sizes(cell: Cell) -> dict[str, int]:
    """Name in the model without a head -> weights before pruning, of the variant's sparsity.csv; empty without one."""
    folders = [cell.folder.path.parent]
    if cell.of_variant:
        own = f"{cell.task}/seed-{cell.seed}"  # where the variant was pruned after it was fine-tuned
        folders += [cell.of_variant, cell.of_variant / own]
    path = next((path for folder in folders if (path := folder / "sparsity.csv").exists()), None)
    if path is None:
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {cell.folder.structure.body_name(row["name"]): int(row["size"]) for row in csv.DictReader(file)}
