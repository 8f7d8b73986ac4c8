"""Layer errors: the output error of pruned matrices, layer by layer, as calibrated methods report it."""

from collections.abc import Iterable
from typing import Any

from matplotlib.ticker import MaxNLocator

from llm_sparsity.reporting.figures import style
from llm_sparsity.reporting.figures.drawing import PARTS, Drawn, Study
from llm_sparsity.reporting.figures.labels import Points, name_points


def draw(study: Study) -> Iterable[Drawn]:
    """A figure for each model, with a panel for each sparsity and stack."""
    rows = study.tables["tensors"].dropna(subset=["error"])
    for model, mine in rows.groupby("model", sort=False):
        methods = list(dict.fromkeys(mine.method))
        panels = list(mine.groupby(["sparsity", "stack"], sort=False))
        stacked = mine["stack"].nunique() > 1
        names = [f"{model}, {sparsity}{f', {stack}' if stacked else ''}" for (sparsity, stack), _ in panels]
        figure, axes = style.panels(names, sharey=True)
        ends: Points = {}
        for ax, (_, group) in zip(axes, panels, strict=True):
            ends[ax] = []
            for method, line in group.groupby("method", sort=False):
                mean, look = line.groupby("layer").error.mean(), study.look(str(model), str(method), methods)
                ax.plot(mean.index.astype(int), mean, **look, markersize=4)
                ends[ax].append((float(mean.index[-1]), float(mean.iloc[-1]), str(method), look["color"]))
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            ax.set_xlabel("Layer, from 0")
        axes[0].set_ylim(bottom=0)
        name_points(figure, ends)
        axes[0].set_ylabel("Error of a matrix's output, relative")
        caption = (
            f"Relative output error of the pruned matrices of {model} on the calibration text: the norm of the change "
            "of the output over its norm before pruning, mean over the matrices of a layer. The inputs come from the "
            "pruned layers before. A layer with a large error may need a lower sparsity."
        )
        worst: Any = mine.groupby(["method", "sparsity", "stack", "layer"], sort=False).error.mean().idxmax()
        title = f"The outputs of {model} change most in layer {worst[3]}, by {worst[0]} at {worst[1].label}"
        yield Drawn(f"errors-{model}", PARTS, title, caption, figure)
