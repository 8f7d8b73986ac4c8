"""Tables of a made-up study, for tests of figures and sentences. All numbers are MADE UP."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from llm_sparsity.reporting import claims, tables
from llm_sparsity.study.sparsity import ZERO, Sparsity

CLAIMS = Path(__file__).parents[1] / "studies/report/claims.yaml"
PUBLISHED = CLAIMS.parents[1] / "published.csv"
SPARSITIES = ("0.5", "0.9")
TASK_METRICS = ("accuracy", "f1", "combined")
MACHINE = {"device": "cpu", "threads": 1, "processes": 1}
VERSIONS = dict.fromkeys(tables.VERSIONS, "1.0")

Rows = dict[str, list[dict[str, Any]]]


def write_tables(
    folder: Path,
    models: list[str],
    methods: list[str],
    seeds: int = 1,
    text: bool = True,
    recipes: tuple[str, ...] = ("kept",),
    recovered: tuple[str, ...] = (),
    sparsities: tuple[str, ...] = SPARSITIES,
    speed: bool = False,
    score: str = "accuracy",
    judged: bool = False,
) -> dict[str, Any]:
    """Write the tables of a made-up study.

    Args:
        folder: of the tables; it is created.
        models: names.
        methods: names.
        seeds: number of seeds of the task sst2, and of recipes that train on the text.
        text: whether the study measures perplexity.
        recipes: of sst2.
        recovered: recipes that train on the text.
        sparsities: besides dense. A pattern costs twice as much quality as a fraction of its size.
        speed: whether the study measures speed.
        score: what sst2 is judged by.
        judged: whether the claims of the report's study are.

    Returns:
        The config of the study.
    """
    generator = np.random.default_rng(0)
    rows: Rows = {name: [] for name in tables.COLUMNS}
    for number, model in enumerate(models):
        for method, sparsity in [("dense", ZERO), *itertools.product(methods, map(Sparsity, sparsities))]:
            scope = "" if method == "dense" else "linear"
            variant = {"model": model, "method": method, "scope": scope, "sparsity": sparsity, "calibration_seed": 0}
            _add_size(rows, variant)
            _add_tensors(rows, variant)
            if text:
                _add_text(rows, variant, recovered, seeds)
            if speed:
                _add_speed(rows, variant)
            for recipe, seed in itertools.product(recipes if method != "dense" else ("kept",), range(seeds)):
                run = {"task": "sst2", "recipe": recipe, "mask": "released" if recipe == "released" else "kept"}
                _add_run(rows, variant | run | {"seed": seed}, number, 0.01 * generator.standard_normal(), score)
        _add_weights(rows, model)
    rows["tasks"] = [{"task": "sst2", "score": score}, *([{"task": "text", "score": "perplexity"}] if text else [])]
    rows["baselines"] = [{"task": "sst2", "metric": metric, "value": 0.5} for metric in _metrics(score)]
    found = {name: tables.frame(name, rows[name]) for name in tables.COLUMNS}
    tables.write(folder, found | {"claims": claims.judge(claims.load(CLAIMS) if judged else None, found)})
    return {"name": "made-up", "study": [{"models": models}]}


def _loss(sparsity: Sparsity) -> float:
    return sparsity.fraction * (2 if sparsity.is_pattern else 1)


def _add_size(rows: Rows, variant: dict[str, Any]) -> None:
    share = variant["sparsity"].fraction
    ratio = 1 - share * (0.9 if variant["sparsity"].is_pattern else 1)
    size = {"measured_sparsity": share, "weights": 100, "removed": round(100 * share), "bytes": round(1000 * ratio)}
    size |= {"dense_bytes": 1200, "container_bytes": size["bytes"], "ratio": ratio, "plain_ratio": size["bytes"] / 1200}
    dense = {"bytes": 1200, "plain_ratio": 1.0} if variant["method"] == "dense" else {}
    rows["sizes"].append(variant | size | dense)


def _add_tensors(rows: Rows, variant: dict[str, Any]) -> None:
    for layer in range(4 if variant["method"] != "dense" else 0):
        place = {"name": f"{layer}", "stack": "encoder", "layer": layer, "part": "mlp", "shape": "2x2", "size": 4}
        error = 0.1 * layer * variant["sparsity"].fraction if variant["method"] in ("wanda", "sparsegpt") else ""
        rows["tensors"].append(variant | place | {"error": error})


def _add_text(rows: Rows, variant: dict[str, Any], recovered: tuple[str, ...], seeds: int) -> None:
    loss = _loss(variant["sparsity"])
    cell = variant | VERSIONS | {"task": "text", "recipe": "", "mask": "", "seed": "", "windows": 20}
    rows["metrics"].append(cell | {"metric": "perplexity", "value": 30 * 10**loss})
    rows["metrics"].append(cell | {"metric": "nll", "value": 3.0})
    if variant["method"] != "dense":
        rows["metrics"].append(cell | {"metric": f"perplexity{tables.PAIRED}", "value": 0.01})
    recipes = recovered if variant["method"] != "dense" else ("kept",) * bool(recovered)
    for recipe, seed in itertools.product(recipes, range(max(seeds, 1))):
        trained = cell | {"recipe": recipe, "mask": "kept", "seed": seed, "metric": "perplexity"}
        rows["metrics"].append(trained | {"value": 20 * (2 if recipe == "kept" else 1.5) ** (2 * loss)})


def _add_speed(rows: Rows, variant: dict[str, Any]) -> None:
    dense = variant["method"] == "dense"
    pattern = variant["sparsity"].is_pattern
    for execution in ("dense",) if dense else ("dense", "sparse"):
        speedup = 1.0 if execution == "dense" else 0.7 + variant["sparsity"].fraction + 0.3 * pattern
        fact = {"execution": execution, "batch_size": 1, "sequence_length": 128, "seconds": 0.1 / speedup}
        fact |= {"speedup": speedup, "speedup_low": speedup - 0.05, "speedup_high": speedup + 0.05}
        rows["speed"].append(variant | VERSIONS | MACHINE | fact)


def _metrics(score: str) -> list[str]:
    return list(dict.fromkeys([*TASK_METRICS, score]))


def _add_run(rows: Rows, cell: dict[str, Any], model: int, noise: float, score: str) -> None:
    share = cell["sparsity"].fraction
    value = 0.9 - (0.1 if cell["recipe"] == "gradual" else 0.3) * _loss(cell["sparsity"]) - 0.02 * min(model, 9) + noise
    rows["metrics"] += [cell | VERSIONS | {"metric": metric, "value": value} for metric in _metrics(score)]
    if score != "accuracy":
        rows["metrics"].append(cell | VERSIONS | {"metric": f"{score}_stderr", "value": 0.04})
    facts: dict[str, Any] = {"epochs": 2, "validation_examples": 400, "seen_examples": 0}
    facts |= {"measured_sparsity": 0.01 if cell["mask"] == "released" else share}
    facts["bytes"] = round(1100 * (1 - facts["measured_sparsity"]))  # what was trained compresses less
    times = dict.fromkeys(tables.SECONDS, 10 + model)
    rows["runs"].append(cell | times | MACHINE | VERSIONS | facts)
    rows["history"] += [
        cell | {"epoch": int(step == 20), "step": step, "measured_sparsity": share / step} for step in (1, 5, 20)
    ]


def _add_weights(rows: Rows, model: str) -> None:
    dense = {"model": model, "method": "dense", "scope": "", "sparsity": ZERO, "calibration_seed": 0}
    for level, stack, layer in [("overall", "", -1), *(("layer", "encoder", layer) for layer in range(-1, 4))]:
        place = dense | {"level": level, "name": f"{stack} {layer}", "stack": stack, "layer": layer, "part": ""}
        for statistic in ("count", "zeros", "mean", "std", "min", "max"):
            rows["weights"].append(place | {"statistic": statistic, "x": "", "value": 1.0 + layer})
        for x in (0.001, 0.01, 0.1):
            rows["weights"].append(place | {"statistic": "share_below", "x": x, "value": x})
        for x in np.logspace(-5, 1, 30):
            below = 1 - np.exp(-x * 30 / (layer + 3))
            rows["weights"].append(place | {"statistic": "cumulative", "x": x, "value": below})
        for x in np.linspace(-1, 1, 21)[:-1] if level == "overall" else ():
            rows["weights"].append(place | {"statistic": "histogram", "x": x, "value": 1e6 * np.exp(-9 * x * x)})
