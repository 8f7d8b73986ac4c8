"""Draw the figures of a study, and write its page and summary, from the tables alone."""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd

from llm_sparsity.reporting import claims as earlier
from llm_sparsity.reporting import tables as data
from llm_sparsity.reporting.figures import (
    by_sparsity,
    frontier,
    layer_errors,
    parts,
    perplexity,
    regrowth,
    size,
    speed,
    weights,
    zero_shot,
)
from llm_sparsity.reporting.figures.drawing import SECTIONS, Drawn, Study, save
from llm_sparsity.reporting.figures.style import STYLE
from llm_sparsity.reporting.page import page
from llm_sparsity.reporting.references import PUBLISHED, read_numbers
from llm_sparsity.reporting.summary import summary
from llm_sparsity.storage.files import write_text

# The longest first, for processes that share them.
KINDS = (weights, by_sparsity, perplexity, regrowth, zero_shot, parts, layer_errors, size, speed, frontier)


def plot(
    tables: Path,
    output: Path,
    *,
    config: Mapping[str, Any],
    methods: Mapping[str, str],
    published: Path | None = None,
    claims: Path | None = None,
    processes: int = 1,
) -> None:
    """Draw every figure for which the tables have data, and write report.html and summary.txt.

    Args:
        tables: folder of the CSV files of the study.
        output: folder for figures/, report.html and summary.txt.
        config: of the study, for the order of names and for the page.
        methods: for the page: name -> what it does, and its paper.
        published: CSV file of numbers of papers, drawn as crosses; see `references`.
        claims: file of claims of an earlier study, which get a section of the page; see `claims`.
        processes: that draw the figures.

    Raises:
        UserError: one of the two files is wrong.
    """
    found = data.read(tables)
    study = Study(
        every=found,
        models=list(dict.fromkeys(model for grid in config["study"] for model in grid["models"])),
        config=config,
        published=read_numbers(published, PUBLISHED) if published else pd.DataFrame(columns=PUBLISHED),
        claims=earlier.load(claims) if claims else None,
    )
    draw, kinds = partial(_drawn, study, output / "figures"), [kind.draw for kind in KINDS]
    if processes == 1:
        drawn = [figure for kind in kinds for figure in draw(kind)]
    else:
        with ProcessPoolExecutor(processes, mp_context=get_context("fork")) as pool:
            drawn = [figure for figures in pool.map(draw, kinds) for figure in figures]
    sections = {name: [figure for figure in drawn if figure["section"] == name] for name in SECTIONS}
    write_text(output / "summary.txt", summary(found, output, study.claims, config))
    write_text(output / "report.html", page(found, config, methods, sections, study.claims))


def _drawn(study: Study, folder: Path, draw: Callable[[Study], Iterable[Drawn]]) -> list[dict[str, str]]:
    """Draw and save the figures of a kind; what the page shows of them."""
    with mpl.rc_context(STYLE):
        return [save(figure, folder) for figure in draw(study)]
