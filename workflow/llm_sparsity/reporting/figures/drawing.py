"""What every figure is drawn from, a drawn figure, and its files."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from llm_sparsity.reporting.claims import Claims
from llm_sparsity.reporting.figures import style
from llm_sparsity.reporting.tables import Tables, scored
from llm_sparsity.reporting.wording import wrapped
from llm_sparsity.storage.files import atomic

LONGEST = 120  # letters of a file name; file systems allow 255, and a temporary name is longer
METADATA: dict[str, dict[str, Any]] = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}

# The questions of the page that figures answer, in their order. The first has a chart of its own on the page.
PICK = "What should I take?"
QUALITY = "How much quality is lost at each sparsity?"
PARTS = "Which part of a model is sensitive?"
SAVINGS = "What is saved, in bytes and seconds?"
WEIGHTS = "What do the weights look like?"
SECTIONS = (PICK, QUALITY, PARTS, SAVINGS, WEIGHTS)


@dataclass(frozen=True)
class Study:
    """What figures are drawn from.

    Args:
        every: the tables of the study.
        models: in the order of the config.
        config: of the study.
        published: numbers of papers, with the columns `references.PUBLISHED`.
        claims: of an earlier study, whose numbers are drawn too; None: there is none.
    """

    every: Tables
    models: list[str]
    config: Mapping[str, Any]
    published: pd.DataFrame
    claims: Claims | None = None

    @cached_property
    def tables(self) -> Tables:
        """The tables, without the metrics of cells that diverged."""
        return {**self.every, "metrics": scored(self.every["metrics"])}

    def present(self, rows: pd.DataFrame) -> list[str]:
        """The models that rows are about, in the order of the config."""
        return [model for model in self.models if model in set(rows.model)]

    def colour(self, model: str) -> str:
        """The colour of a model, the same in every figure."""
        return style.colour_of(self.models, model)

    def look(self, model: str, method: str, methods: Sequence[str]) -> dict[str, Any]:
        """The colour and marker of a method of one model; `methods` share the tints of its colour."""
        number = list(methods).index(method) if method in methods else 0
        return {"color": style.tint(self.colour(model), number, len(methods)), "marker": style.marker_of(method)}


@dataclass(frozen=True)
class Drawn:
    """A figure.

    Args:
        name: of its files, see `joined`; no other figure of a study has it.
        section: the question that it answers, one of `SECTIONS`.
        title: what is seen, in a sentence.
        caption: how to read it.
        figure: as drawn.
    """

    name: str
    section: str
    title: str
    caption: str
    figure: Figure


def joined(names: Sequence[str]) -> str:
    """Names as a part of a figure's name: "a-b". A hash follows names with hyphens, as "a-b" may be one name itself."""
    text = "-".join(names)
    return f"{text}-{_hash(*names)}" if any("-" in name for name in names) else text


def _file_name(name: str) -> str:
    """The name of a figure as that of a file, at most `LONGEST` letters long."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 9]}-{_hash(name)}"


def _hash(*names: str) -> str:
    """Eight letters that tell names apart."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:8]


def save(drawn: Drawn, folder: Path) -> dict[str, str]:
    """Write a figure with its title as SVG and PNG, and close it.

    Returns:
        What the page shows of it: there the title is text, so the SVG has none.
    """
    figure, name, untitled = drawn.figure, _file_name(drawn.name), io.StringIO()
    figure.savefig(untitled, format="svg", metadata=METADATA["svg"])
    width, height = figure.get_size_inches()
    lines = wrapped(drawn.title, int(width * 10.2))
    figure.set_size_inches(width, height + 0.22 * len(lines))
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=11, fontweight="bold")
    for suffix, metadata in METADATA.items():
        with atomic(folder / f"{name}.{suffix}") as temporary:
            figure.savefig(temporary, format=suffix, metadata=metadata)
        figure.set_layout_engine("none")  # the next format has the same
    plt.close(figure)
    return {
        "name": name, "section": drawn.section, "title": drawn.title, "caption": drawn.caption,
        "width": str(round(96 * width)), "height": str(round(96 * height)), "svg": untitled.getvalue(),
    }  # fmt: skip
