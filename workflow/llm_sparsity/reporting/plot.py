"""Draw the figures of a study, and write its page and summary, from the tables alone."""

from collections.abc import Mapping
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
from llm_sparsity.reporting.figures.drawing import SECTIONS, Study, save
from llm_sparsity.reporting.figures.style import STYLE
from llm_sparsity.reporting.page import page
from llm_sparsity.reporting.references import PUBLISHED, read_numbers
from llm_sparsity.reporting.summary import summary
from llm_sparsity.storage.files import write_text

KINDS = (by_sparsity, perplexity, regrowth, zero_shot, parts, layer_errors, size, speed, frontier, weights)


def plot(
    tables: Path,
    output: Path,
    *,
    config: Mapping[str, Any],
    methods: Mapping[str, str],
    published: Path | None = None,
    claims: Path | None = None,
) -> None:
    """Draw every figure for which the tables have data, and write report.html and summary.txt.

    Args:
        tables: folder of the CSV files of the study.
        output: folder for figures/, report.html and summary.txt.
        config: of the study, for the order of names and for the page.
        methods: for the page: name -> what it does, and its paper.
        published: CSV file of numbers of papers, drawn as crosses; see `references`.
        claims: file of claims of an earlier study, which get a section of the page; see `claims`.

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
    with mpl.rc_context(STYLE):
        drawn = [save(figure, output / "figures") for kind in KINDS for figure in kind.draw(study)]
    sections = {name: [figure for figure in drawn if figure["section"] == name] for name in SECTIONS}
    write_text(output / "summary.txt", summary(found, output, study.claims))
    write_text(output / "report.html", page(found, config, methods, sections, study.claims))
