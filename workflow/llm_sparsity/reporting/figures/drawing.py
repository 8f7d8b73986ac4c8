"""What every figure is drawn from, a drawn figure, and its files."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from llm_sparsity.reporting.claims import Claims
from llm_sparsity.reporting.tables import Tables
from llm_sparsity.storage.files import atomic

SECTIONS = ("What to pick", "Task quality", "Cost", "Weights")


@dataclass(frozen=True)
class Study:
    """What figures are drawn from.

    Args:
        tables: of the study.
        models: in the order of the config.
        config: of the study.
        published: numbers of papers, with the columns `references.PUBLISHED`.
        claims: of an earlier study, whose numbers are drawn too; None: there is none.
    """

    tables: Tables
    models: list[str]
    config: Mapping[str, Any]
    published: pd.DataFrame
    claims: Claims | None = None

    def metric(self, metric: str) -> list[tuple[str, pd.DataFrame]]:
        """The tasks that have a metric, each with its rows."""
        rows = self.tables["metrics"]
        return [(str(task), each) for task, each in rows[rows.metric == metric].groupby("task", sort=False)]

    def present(self, rows: pd.DataFrame) -> list[str]:
        """The models that rows are about, in the order of the config."""
        return [model for model in self.models if model in set(rows.model)]


@dataclass(frozen=True)
class Drawn:
    """A figure, the name of its files, its section of the page, and how to read it."""

    name: str
    section: str
    caption: str
    figure: Figure


def save(drawn: Drawn, folder: Path) -> dict[str, str]:
    """Write a figure as SVG and PNG, and close it. Returns what the page shows of it."""
    for suffix, metadata in (("svg", {"Date": None, "Creator": None}), ("png", {"Software": None})):
        with atomic(folder / f"{drawn.name}.{suffix}") as temporary:
            drawn.figure.savefig(temporary, format=suffix, metadata=metadata)
    plt.close(drawn.figure)
    svg = (folder / f"{drawn.name}.svg").read_text(encoding="utf-8")
    width, height = drawn.figure.get_size_inches() * 96
    return {
        "name": drawn.name, "section": drawn.section, "caption": drawn.caption, "width": str(round(width)),
        "height": str(round(height)), "svg": svg,
    }  # fmt: skip
