"""Names and numbers as text, for sentences, tables and figures."""

import math
import re
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from llm_sparsity.reporting.intervals import Estimate, Score, quantile
from llm_sparsity.reporting.tables import UNTRAINED, Tables, examples, judged
from llm_sparsity.study.sources import SCORES
from llm_sparsity.study.sparsity import Sparsity

USUAL = ("", "linear")  # scopes that need no name: none, and all matrices of the layers
NAMES = {
    "accuracy": "accuracy",
    "f1": "F1",
    "macro_f1": "macro F1",
    "combined": "combined score",
    "matthews_correlation": "Matthews correlation",
    "pearsonr": "Pearson correlation",
    "spearmanr": "Spearman correlation",
}


def name_of_metric(metric: str) -> str:
    """A metric for readers; of a split beside validation, "accuracy (mismatched)"."""
    if metric in NAMES:
        return NAMES[metric]
    for known, name in NAMES.items():
        if metric.startswith(f"{known}_"):
            return f"{name} ({metric.removeprefix(f'{known}_')})"
    return metric


def begin(text: str) -> str:
    """A text as the start of a sentence."""
    return f"{text[:1].upper()}{text[1:]}"


def in_points(metric: str) -> bool:
    """Whether a metric is counted in points, hundredths of 1, where higher is better; a perplexity is not."""
    return metric != "perplexity"


def constant_answer(metric: str) -> str:
    """The answer of the baseline that a metric is compared with."""
    return "the same number" if metric.startswith(SCORES["regression"]) else "the same label"


def shown(metric: str, value: float) -> str:
    """A value with the digits that its metric supports; a missing one is that of a model that diverged."""
    if math.isnan(value):
        return "diverged"
    if metric != "perplexity":
        return f"{value:.3f}"
    return f"{value:,.1f}" if value < 1e9 else f"{value:.2g}"


def percent(share: float) -> str:
    """A share as text: 0.152 is "15.2 %"."""
    return f"{100 * share:g} %"


def wrapped(text: str, width: int, **options: Any) -> list[str]:
    """A text as lines of at most `width` letters. A number stays with its `%`, and a word with hyphens whole.

    Args:
        options: of `textwrap.wrap`.
    """
    lines = textwrap.wrap(text.replace(" %", "\N{NO-BREAK SPACE}%"), width, break_on_hyphens=False, **options)
    return [line.replace("\N{NO-BREAK SPACE}%", " %") for line in lines]


def part_of(sparsity: Sparsity, whole: str) -> str:
    """How much of something is removed: "50 % of gpt2", "2of4 in gpt2"."""
    return f"{sparsity.label} {'in' if sparsity.is_pattern else 'of'} {whole}"


def scope_name(scope: str) -> str:
    """A scope for readers: layers.3.4.5 becomes layers 3-5."""
    word, *numbers = scope.split(".")
    if not numbers:
        return word
    layers = [int(number) for number in numbers]
    if len(layers) > 1 and layers == list(range(layers[0], layers[-1] + 1)):
        return f"layers {layers[0]}-{layers[-1]}"
    return f"layer{'s' * (len(layers) > 1)} {', '.join(numbers)}"


def name_of(row: Any) -> str:
    """What a cell is, for sentences: "magnitude, 50 % of linear, gradual"; of a quantised part, "int8 of attention"."""
    if row.sparsity.is_dense:
        part = "all matrices" if row.scope == "all" else scope_name(row.scope)
        what = [row.method if row.scope in USUAL else f"{row.method} of {part}"]
    else:
        what = [row.method, part_of(row.sparsity, scope_name(row.scope))]
    recipe = getattr(row, "recipe", UNTRAINED)  # the tables of sizes and speed have none
    return ", ".join([*what, *([recipe] if recipe not in ("kept", UNTRAINED) else [])])


def short(sparsity: Sparsity) -> str:
    """A sparsity beside a point: "50%", or "2of4"."""
    return sparsity.label.replace(" ", "")


def point_name(row: Any) -> str:
    """The name of a point whose marker tells the first part of the method: "50%", "50% +int8", "2of4", "dense"."""
    if row.sparsity.is_dense:
        return str(row.method)
    steps = row.method.split("+")[1:]
    return " ".join([short(row.sparsity), *(f"+{step}" for step in steps)])


def cost_of(metric: str, change: Estimate | None) -> str:
    """What an option costs: "5.7 ± 3.1 points" of accuracy, or "2.20 times (2.05 to 2.36)" the perplexity."""
    if change is None:
        return "unknown"
    has_interval = change.margin > 0
    if in_points(metric):
        value = f"{-100 * change.value:z.1f}".replace("-", "\N{MINUS SIGN}")
        return f"{value}{f' ± {100 * change.margin:.1f}' * has_interval} points"
    interval = span((ratio_of(change.value + each * change.margin) for each in (-1, 1)), 2)
    return f"{ratio_of(change.value):.2f} times{f' ({interval})' * has_interval}"


def ratio_of(logarithm: float) -> float:
    """The ratio of two perplexities from the difference of their logarithms."""
    return math.exp(min(logarithm, 700.0))  # the largest of a float is that of 709


def number_of(count: int, noun: str) -> str:
    """A number with its noun: "one seed", "3 seeds"."""
    return f"one {noun}" if count == 1 else f"{count} {noun}s"


def times(ratio: float) -> str:
    """How many times as fast, with a digit more below two, where it tells a gain from none."""
    return f"{ratio:.{2 if ratio < 2 else 1}f} times"


def span(values: Iterable[float], digits: int) -> str:
    """From the lowest value to the highest, such as "0.56 to 0.96"; of equal ones, that value."""
    known = list(values)
    return " to ".join(dict.fromkeys(f"{end:.{digits}f}" for end in (min(known), max(known))))


def resolution(data: Tables, task: str) -> str:
    """The precision of a task's score on its validation split: a 95 % interval, of several models the range of each."""
    rows = judged(data)
    dense = rows[(rows.task == task) & (rows.method == "dense")]
    count, metric = examples(data, task), str(next(iter(dense.metric), ""))
    scores = [Score.of(rows, metric, count) for _, rows in dense.groupby("model")]
    known = [score for score in scores if not math.isnan(score.variance)]
    if not known:
        return f"The validation split has {count} examples."
    bands = [100 * quantile() * math.sqrt(score.variance / count) for score in known]
    return (
        f"The validation split has {count} examples: near the dense {name_of_metric(metric)} of "
        f"{span((float(score.values.mean()) for score in known), 2)}, their number alone "
        f"leaves ±{span(bands, 1)} points of chance (95 %); seeds add theirs."
    )


def caveat(config: Mapping[str, Any], model: str) -> str:
    """What a reader must know about a model whose published weights are codes already; "" for others."""
    source = config.get("models", {}).get(model, {}).get("source", {})
    codes = re.search(r"(?:^|[._-])(I?Q(\d)\w*?)(?:-\d+-of-\d+)?\.gguf$", str(source.get("path") or ""), re.IGNORECASE)
    if codes is None:
        return ""
    return (
        f"{model} is published as a file of {codes[2]}-bit codes ({codes[1]}). That flatters quantising here, and the "
        "dense model of this study is larger than what its users hold."
    )
