"""Frontier: quality against measured bytes and latency, the choice among all options."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from llm_sparsity.reporting.answers import Question, questions, ranked, title
from llm_sparsity.reporting.figures import style
from llm_sparsity.reporting.figures.drawing import PICK, Drawn, Study
from llm_sparsity.reporting.figures.labels import Point, Points, name_points
from llm_sparsity.reporting.options import Option, front
from llm_sparsity.reporting.tables import UNTRAINED
from llm_sparsity.reporting.wording import begin, in_points, name_of_metric, point_name, scope_name

BESIDE = 8  # entries of a legend; more stand beside the panels
CROWD = 10  # points that can all be named; of more, only those on the frontier and the dense models are
COSTS: dict[str, Callable[[Option], float]] = {  # the label of the axis, and the cost of an option
    "Bytes of the weight file, % of dense": lambda option: 100 * option.share,
    "Latency, fastest execution, % of dense": lambda option: 100 / option.speedup,
}


def draw(study: Study) -> Iterable[Drawn]:
    """A figure for each task, with a panel for each cost that was measured."""
    asked: dict[tuple[str, str], list[Question]] = {}
    for question in questions(study.every):
        asked.setdefault((question.task, question.metric), []).append(question)
    for (task, metric), found in asked.items():
        options = [option for question in found for option in question.options]
        costs = {
            name: cost
            for name, cost in COSTS.items()
            if any(not math.isnan(cost(o)) for o in options if not o.is_dense)
        }
        if not costs:
            continue
        markers = len({option.method.partition("+")[0] for option in options}) + len(found)
        figure, axes = style.panels([""] * len(costs), width=5.6, height=max(4.2, 1 + 0.19 * markers))
        named: Points = {}
        for ax, (name, cost) in zip(axes, costs.items(), strict=True):
            named[ax] = _panel(ax, study, [option for option in options if not math.isnan(cost(option))], cost)
            ax.set_xlabel(name)
        _legend(axes, study, options)
        name_points(figure, named, up=7)
        label = begin(name_of_metric(metric)) if in_points(metric) else "Perplexity (log scale; lower is better)"
        axes[0].set_ylabel(label)
        caption = (
            f"What to take on {task}: every variant and recipe, but for released masks and the control random, by cost "
            "and quality. The grey lines join those of a model that no other beats in both. If there are many points, "
            "only those on a line are named. Bytes are those of the weight file that was scored, as a share of the "
            "dense model in the same container; latency is that of the fastest execution."
        )
        yield Drawn(f"frontier-{task}", PICK, title(ranked(found)), caption, figure)


def _panel(ax: Axes, study: Study, options: list[Option], cost: Callable[[Option], float]) -> list[Point]:
    """One cost against one metric: a colour a model, a marker a method; returns the points to be named."""
    best = [option for model in study.models for option in _front(ax, options, model, cost)]
    for option in options:
        hollow = style.HOLLOW if option.sparsity.is_pattern else {}
        look = {"marker": style.marker_of(option.method), "color": study.colour(option.model), **hollow}
        ax.plot(cost(option), option.value, zorder=2, **look)
    named = [(cost(option), option.value, name, "#333333") for option, name in names(options, best).items()]
    ax.set_xlim(left=0, right=max(map(cost, options)) * 1.12)
    if options[0].metric == "perplexity":
        style.log_perplexity([ax])
    return named


def _front(ax: Axes, options: list[Option], model: str, cost: Callable[[Option], float]) -> list[Option]:
    """Draw the line of the options of a model that no other one beats; returns them."""
    best = front(options, model, cost)
    ax.plot(
        [cost(option) for option in best], [option.value for option in best], color="#bbbbbb", linewidth=3, zorder=1
    )
    return best


def names(options: Sequence[Option], best: Sequence[Option]) -> dict[Option, str]:
    """The options that are named, with their names: all of a few; of many, dense models and those of the frontier.

    A quantised model is named without its recipe if it has one only.
    """
    cells = Counter((option.model, option.method, option.scope, option.sparsity) for option in options)
    alone = {
        option
        for option in options
        if option.is_quantised and cells[option.model, option.method, option.scope, option.sparsity] == 1
    }
    scopes = len({option.scope for option in options if not option.is_dense}) > 1
    plain = UNTRAINED if any(option.recipe == UNTRAINED for option in options) else "kept"
    return {
        option: " ".join(
            [
                point_name(option),
                *([scope_name(option.scope)] if scopes and not option.is_dense else []),
                *([option.recipe] if option.recipe != plain and option not in alone else []),
            ]
        )
        for option in options
        if len(options) <= CROWD or option in best or option.is_dense
    }


def _legend(axes: Sequence[Axes], study: Study, options: Sequence[Option]) -> None:
    """Methods by marker, and models by colour if there are several; beside the panels if there are many."""
    handles = [
        Line2D([], [], marker=style.marker_of(method), color=style.INK, linestyle="", label=method)
        for method in dict.fromkeys(option.method.partition("+")[0] for option in options if not option.is_dense)
    ]
    models = list(dict.fromkeys(option.model for option in options))
    handles += [Line2D([], [], color=study.colour(model), linewidth=4, label=model) for model in models[1:] and models]
    if len(handles) <= BESIDE:
        axes[0].legend(handles=handles, fontsize=8.5, loc="best")
    else:
        axes[-1].legend(handles=handles, fontsize=8.5, loc="upper left", bbox_to_anchor=(1, 1))
