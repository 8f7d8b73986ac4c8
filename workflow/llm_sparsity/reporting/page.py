"""What a study's tables say in words: the answer, small tables, and the page that holds them and the figures."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import yaml

from llm_sparsity.reporting.claims import margin
from llm_sparsity.study.cells import fraction

TEMPLATE = Path(__file__).parents[2] / "report" / "report.html.jinja"
CELL = ["model", "method", "scope", "sparsity"]
QUALITY = {  # metric -> its sign, and what "no worse than dense" allows for
    "accuracy": (1, "2 points of accuracy"),
    "perplexity": (-1, "10 % of perplexity"),
}
UNTRAINED = ""  # the recipe of what was measured without training
WHOLE = ("all", "linear")  # scopes that are no part of a model
VERDICTS = {"holds": "hold", "does not hold": "do not hold", "undecided": "are undecided"}  # told where looked at
NAMED = 4  # models that a sentence can name; of more, it names the extremes
Data = Mapping[str, pd.DataFrame]


def read(tables: Path) -> dict[str, pd.DataFrame]:
    """A study's tables by name; `sparsity` as the config spells it, `level` as a number."""
    return {path.stem: _read(path) for path in sorted(tables.glob("*.csv"))}


def _read(path: Path) -> pd.DataFrame:
    numbers = (
        "value",
        "x",
        "plain_bytes",
        "bound_bytes",
        "margin",
        "seeds",
        "low",
        "high",
        "earlier",
        "error",
        "block_error",
    )
    blank = {column: [""] for column in numbers}
    table = pd.read_csv(path, keep_default_na=False, na_values=blank, dtype={"sparsity": str})
    if path.stem in ("sizes", "speed", "weights"):  # of several draws of calibration text, the first stands for all
        table = table[table.calibration_seed == table.groupby(CELL).calibration_seed.transform("min")]
    table = table.rename(columns={"level": "level_"})  # of weights.csv: overall, layer, tensor
    if "sparsity" in table:
        table["level"] = [fraction(sparsity) for sparsity in table["sparsity"]]
    return table


def page(
    data: Data,
    config: Mapping[str, Any],
    methods: Mapping[str, str],
    sections: Mapping[str, list[dict[str, str]]],
) -> str:
    """The whole report as one HTML file.

    Args:
        data: the tables.
        config: the study's.
        methods: of the study: name -> what it does, and its paper.
        sections: title -> figures: name, caption, width, height (pixels), svg (base64).
    """
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        TEMPLATE.read_text(encoding="utf-8")
    )
    html: str = template.render(
        name=config["name"],
        answers=answers(data),
        sections={name: figures for name, figures in sections.items() if figures},
        results=results(data),
        claims=_claims(data["claims"]),
        tables={
            name: _html_table(table) for name, table in data.items() if name not in ("weights", "history", "tensors")
        },
        config=yaml.safe_dump(json.loads(json.dumps(config)), sort_keys=False, default_flow_style=None, width=110),
        methods=methods,
        machines=_machines(data),
    )
    return html


def summary(data: Data, output: Path) -> str:
    """What the run's last lines say.

    Args:
        data: the tables.
        output: the study's folder in `reports/`.
    """
    lines: list[str] = []
    for table in results(data):
        if table["metric"] in QUALITY:
            lines += ["", f"{table['metric']} on {table['task']}, by sparsity"]
            grid = [table["heads"], *table["lines"]]
            widths = [max(len(row[column]) for row in grid) for column in range(len(grid[0]))]
            lines += [
                "  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in grid
            ]
    lines += ["", *(f"* {answer}" for answer in answers(data))]
    verdicts = data["claims"].verdict.value_counts()
    if told := [f"{verdicts[verdict]} {words}" for verdict, words in VERDICTS.items() if verdict in verdicts]:
        lines += ["", f"Claims of the earlier study, by this one's figures: {', '.join(told)}."]
    lines += ["", f"Read {output / 'report.html'}"]
    lines += [f"Figures: {output / 'figures'}   Tables: {output / 'tables'}"]
    return "\n".join(lines[1:]) + "\n"


def answers(data: Data) -> list[str]:
    """The study's answer, in five sentences at most."""
    told = [_quality(data, "accuracy"), _quality(data, "perplexity"), _choice(data), _cost(data), _training(data)]
    return [line for line in told if line]


def _means(data: Data, metric: str) -> pd.DataFrame:
    """Means over seeds, a row a cell, the best first; cells whose zeros grew back are dense models, and left out."""
    rows = data["metrics"]
    rows = rows[(rows.metric == metric) & (rows["mask"] != "released")]
    means = rows.groupby(["task", *CELL, "recipe", "level"], sort=False).value.mean().reset_index()
    return means.sort_values("value", ascending=QUALITY[metric][0] < 0, kind="stable")


def _quality(data: Data, metric: str) -> str:
    """How much each model can lose, of all its matrices or weights, before it is worse than dense."""
    sign, within = QUALITY[metric]
    means = _means(data, metric)
    if means.scope.isin(WHOLE).any():
        means = means[means.scope.isin(["", *WHOLE])]
    told = []
    for task in dict.fromkeys(data["metrics"].task):
        found = []
        for model in dict.fromkeys(data["metrics"].model):
            rows = means[(means.task == task) & (means.model == model)]
            pruned = rows[rows.method != "dense"]
            pruned = pruned.assign(dense=[dense(rows, recipe).value.mean() for recipe in pruned.recipe])
            limit = pruned.dense - 0.02 if sign > 0 else pruned.dense * 1.1
            free = pruned[sign * (pruned.value - limit) >= 0]
            if pruned.empty:
                continue
            if sign > 0 and pruned.dense.max() < majority(data, task, metric) + 0.02:
                found.append((-1.0, f"{model} tells nothing (dense it is no better than the majority class)"))
                continue
            best = pruned.loc[pruned.level.idxmin()] if free.empty else free.loc[free.level.idxmax()]
            how = f"{_how(best)}: {shown(metric, best.value)}, dense {shown(metric, best.dense)}"
            if free.empty:
                found.append((0.0, f"nothing of {model} (at {_percent(best.level)} by {how})"))
            else:
                found.append((best.level, f"{_percent(best.level)} of {model} ({how})"))
        if len(found) > NAMED:
            found = [max(found), min(found)]
        if found:
            told.append(f"on {task} {', '.join(text for _, text in found)}")
    return f"What can go within {within} of dense: {'; '.join(told)}." if told else ""


def dense(rows: pd.DataFrame, recipe: str) -> pd.DataFrame:
    """Of a table's rows those of dense models that a recipe is compared with: trained, under `kept`, if it trains."""
    return rows[(rows.method == "dense") & (rows.recipe == (UNTRAINED if recipe == UNTRAINED else "kept"))]


def _choice(data: Data) -> str:
    """What the choice of a method, and of a part, is worth: the widest gap at equal sparsity of each."""
    means = pd.concat([_means(data, metric).assign(metric=metric) for metric in QUALITY])
    means = means[~means.method.isin(["dense", "random"])]  # random is a control, nobody's choice
    means = means[(means.metric != "perplexity") | (means.recipe == UNTRAINED)]
    told = []
    if gap := _widest(means, "method"):
        best, worst = gap
        told.append(
            f"How matters: with {_percent(best.level)} of {best.model} removed, {best.method} leaves {best.metric} "
            f"{shown(best.metric, best.value)} on {best.task}, {worst.method} {shown(best.metric, worst.value)}"
        )
    if gap := _widest(means[~means.scope.isin(WHOLE)], "scope"):
        best, worst = gap
        told.append(
            f"Where matters: with {_percent(best.level)} of one part removed, {best.model} has {best.metric} "
            f"{shown(best.metric, best.value)} on {best.task} ({scope_name(best.scope)}) to "
            f"{shown(best.metric, worst.value)} ({scope_name(worst.scope)})"
        )
    return ". ".join(told) + "." if told else ""


def _widest(means: pd.DataFrame, axis: str) -> tuple[Any, Any] | None:
    """The best and the worst of the cells that differ in one column alone, where their values' ratio is largest."""
    same = [column for column in ("metric", "task", "model", "method", "scope", "recipe", "level") if column != axis]
    pairs = [(rows.iloc[0], rows.iloc[-1]) for _, rows in means.groupby(same, sort=False) if len(rows) > 1]
    pairs = [pair for pair in pairs if min(pair[0].value, pair[1].value) > 0]
    return max(pairs, key=lambda pair: abs(math.log(pair[0].value / pair[1].value)), default=None)


def _cost(data: Data) -> str:
    """The smallest file, and the fastest execution."""
    sizes, speed, told = data["sizes"], data["speed"], []
    if (sizes.method != "dense").any():
        row = sizes.loc[sizes.ratio.astype(float).idxmin()]
        told.append(
            f"Bytes: {row.model} at {_percent(row.level)} ({row.method}, {scope_name(row.scope)}) takes "
            f"{_percent(round(float(row.ratio), 3))} of its dense file: {row.bytes / 1e6:,.1f} of "
            f"{row.dense_bytes / 1e6:,.1f} MB"
        )
    pruned = speed[speed.method != "dense"]
    if len(pruned):
        row = pruned.loc[pruned.speedup.astype(float).idxmax()]
        told.append(
            f"Seconds: {row.model} at {_percent(row.level)} ({row.method}, {scope_name(row.scope)}, {row.execution}) "
            f"runs {float(row.speedup):.1f} times as fast as dense ({row.device}, batch {row.batch_size})"
        )
    return ". ".join(told) + "." if told else ""


def _training(data: Data) -> str:
    """What recipes are worth, and what is left of the zeros where the mask is released."""
    told = []
    means = _means(data, "accuracy")
    both = means[means.recipe == "kept"].merge(means[means.recipe != "kept"], on=["task", *CELL, "level"])
    if len(both):
        row = both.loc[(both.value_y - both.value_x).idxmax()]
        told.append(
            f"Training: on {row.task}, {row.model} at {_percent(row.level)} reaches {row.value_y:.3f} by the recipe "
            f"{row.recipe_y}, {row.value_x:.3f} by kept"
        )
    means = _means(data, "perplexity")
    both = means[means.recipe == UNTRAINED].merge(means[means.recipe != UNTRAINED], on=["task", *CELL, "level"])
    if (both.method != "dense").any():
        row = both[both.method != "dense"].assign(gain=both.value_x / both.value_y).sort_values("gain").iloc[-1]
        trained = dense(means[(means.task == row.task) & (means.model == row.model)], row.recipe_y).value.mean()
        told.append(
            f"Training: on {row.task}, {row.model} at {_percent(row.level)} ({row.method}) goes from perplexity "
            f"{shown('perplexity', row.value_x)} to {shown('perplexity', row.value_y)} by the recipe {row.recipe_y}; "
            f"dense and trained as well it has {shown('perplexity', trained)}"
        )
    runs = data["runs"]
    released = runs[(runs["mask"] == "released") & (runs.method != "dense")]
    if len(released):
        row = released.loc[released.level.idxmax()]
        told.append(
            f"With the mask released, zeros grow back: of {_percent(row.level)} asked for "
            f"{_percent(round(float(row.measured_sparsity), 3))} are left"
            + (", and what is then measured is a dense model" if float(row.measured_sparsity) < 0.1 else "")
        )
    return ". ".join(told) + "." if told else ""


def results(data: Data) -> list[dict[str, Any]]:
    """For each task and metric a small table: a row a model, method, scope and recipe; a column a sparsity.

    A cell is the mean over seeds, with half of its 95 % t-interval where there are several.
    """
    metrics = data["metrics"]
    tables = []
    for task in dict.fromkeys(metrics.task):
        rows = metrics[(metrics.task == task) & (metrics.metric != "nll") & ~metrics.metric.str.endswith("_stderr")]
        for metric in dict.fromkeys(rows.metric):
            chosen = rows[rows.metric == metric]
            levels = sorted(set(chosen.sparsity), key=lambda sparsity: (fraction(sparsity), sparsity))
            untrained = "not trained" if (chosen.recipe != UNTRAINED).any() else ""  # said where it could be mistaken
            lines = []
            for (model, method, scope, recipe), group in chosen[chosen.method != "dense"].groupby(
                ["model", "method", "scope", "recipe"], sort=False
            ):
                whole = dense(chosen[chosen.model == model], recipe)
                values = dict(list(pd.concat([whole, group]).groupby("sparsity").value))
                cells = [_interval(metric, values[level]) if level in values else "" for level in levels]
                lines.append([model, method, scope_name(scope), recipe or untrained, *cells])
            heads = [level if "of" in level else _percent(fraction(level)) for level in levels]
            note = resolution(data, task) if metric == "accuracy" else ""
            tables.append(
                {
                    "task": task,
                    "metric": metric,
                    "heads": ["model", "method", "scope", "recipe", *heads],
                    "lines": lines,
                    "note": note,
                }
            )
    return tables


def _interval(metric: str, values: "pd.Series[float]") -> str:
    """A mean over seeds, ± half of its 95 % t-interval."""
    mean = shown(metric, values.mean())
    return mean if len(values) == 1 else f"{mean} ± {shown(metric, margin(values))}"


def shown(metric: str, value: float) -> str:
    """A value with as many digits as it is worth."""
    return f"{value:,.1f}" if metric == "perplexity" else f"{value:.3f}"


def _percent(level: float) -> str:
    return f"{100 * level:g} %"


def scope_name(scope: str) -> str:
    """A scope for readers: layers.3.4.5 becomes layers 3-5."""
    word, *numbers = scope.split(".")
    if not numbers:
        return word
    layers = [int(number) for number in numbers]
    if len(layers) > 1 and layers == list(range(layers[0], layers[-1] + 1)):
        return f"layers {layers[0]}-{layers[-1]}"
    return f"layer{'s' * (len(layers) > 1)} {', '.join(numbers)}"


def _how(row: Any) -> str:
    """A method and where it was used, and the recipe where it is not the plain one."""
    recipe = f", {row.recipe}" if row.recipe not in ("kept", "") else ""
    return f"{row.method}, {scope_name(row.scope)}{recipe}"


def resolution(data: Data, task: str) -> str:
    """How well a validation split of its size tells two accuracies apart: a binomial's 95 % band."""
    metrics, runs = data["metrics"], data["runs"]
    dense = metrics[(metrics.task == task) & (metrics.metric == "accuracy") & (metrics.method == "dense")]
    examples, accuracy = int(runs.validation_examples[runs.task == task].iloc[0]), float(dense.value.mean())
    band = 196 * math.sqrt(accuracy * (1 - accuracy) / examples)
    return (
        f"The validation split has {examples} examples: near the dense model's accuracy, {accuracy:.2f}, one seed's is "
        f"known to ±{band:.1f} points (95 %)."
    )


def majority(data: Data, task: str, metric: str) -> float:
    """What always answering with the most frequent label reaches."""
    rows = data["baselines"]
    return float(rows.loc[(rows.task == task) & (rows.metric == metric), "value"].iloc[0])


def _claims(table: pd.DataFrame) -> dict[str, Any]:
    """The claims that were looked at, with their places and ranges as text; the others by name."""
    looked = table[table.verdict != "not studied"]
    rows = []
    for row in looked.itertuples():
        places = [row.model, row.task, scope_name(str(row.scope)) if row.scope else "", row.recipe]
        points = row.quantity.startswith(("accuracy", "best accuracy"))
        rows.append(
            {
                "claim": row.claim,
                "place": ", ".join(place for place in places if isinstance(place, str) and place),
                "quantity": row.quantity,
                "here": _with_margin(row.value, row.margin, points=points),
                "earlier": "" if pd.isna(row.earlier) else _with_margin(row.earlier, 0, points=points),
                "range": _range(row.low, row.high, points=points),
                "verdict": row.verdict,
            }
        )
    others = list(dict.fromkeys(table.claim[table.verdict == "not studied"]))
    return {"rows": rows, "others": others}


def _with_margin(value: float, about: float, *, points: bool) -> str:
    """A quantity, ± half of its interval; of accuracies in points."""
    number = (f"{100 * value:+.1f}" if points else f"{value:.3g}").replace("-", "\N{MINUS SIGN}")
    if math.isinf(about):
        return f"{number} (one run)"
    return number + (f" ± {100 * about:.1f}" if points and about else f" ± {about:.2g}" if about else "")


def _range(low: float, high: float, *, points: bool) -> str:
    """Where a claim is true, as text."""
    low_text, high_text = (
        (f"{100 * edge:+g}" if points else f"{edge:g}").replace("-", "\N{MINUS SIGN}") for edge in (low, high)
    )
    unit = " points" if points else ""
    if low == high:
        return low_text
    if math.isinf(low):
        return f"≤ {high_text}{unit}"
    return f"≥ {low_text}{unit}" if math.isinf(high) else f"{low_text} to {high_text}{unit}"


def _machines(data: Data) -> list[str]:
    """The hardware and versions that the study's runs had, each once."""
    runs = data["runs"]
    keys = ["device", "threads", "processes", "torch", "transformers", "accelerate", "python"]
    return list(dict.fromkeys(_facts(row) for row in runs.drop_duplicates(keys)[keys].to_dict("records")))


def _facts(row: Mapping[Any, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in row.items())


def _html_table(table: pd.DataFrame) -> dict[str, Any]:
    """A table for the page: heads, rows as text, which columns hold numbers."""
    table = table.drop(columns=["level"], errors="ignore")
    formats: dict[str, Callable[[Any], str]] = {
        column: (lambda value: "" if pd.isna(value) else f"{value:.6g}") if table[column].dtype == float else str
        for column in table
    }
    rows: Iterable[Any] = table.itertuples(index=False)
    return {
        "heads": list(table),
        "rows": [[formats[column](value) for column, value in zip(table, row, strict=True)] for row in rows],
        "numeric": [bool(pd.api.types.is_numeric_dtype(table[column])) for column in table],
    }
