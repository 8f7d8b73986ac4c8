"""Tables of a made-up study, for tests of what is drawn and told from them. All numbers are MADE UP."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from llm_sparsity.reporting.claims import check
from llm_sparsity.reporting.collect import COLUMNS

LEVELS = ["0", "0.5", "0.9"]


def write_tables(
    folder: Path,
    models: list[str],
    methods: list[str],
    seeds: int = 1,
    text: bool = True,
    recipes: tuple[str, ...] = ("kept",),
    recovered: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Tables of a made-up study; the config that goes with them. `recovered`: recipes that train on the text."""
    generator = np.random.default_rng(0)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in COLUMNS}
    for number, model in enumerate(models):
        for method, level in [("dense", "0"), *itertools.product(methods, LEVELS[1:])]:
            variant = {
                "model": model,
                "method": method,
                "scope": "" if method == "dense" else "linear",
                "sparsity": level,
                "calibration_seed": 0,
            }
            share = float(level)
            rows["sizes"].append(
                variant | {"measured_sparsity": share, "bytes": 10, "dense_bytes": 10, "ratio": 1 - share}
            )
            for layer in range(4 if method != "dense" else 0):
                place = {
                    "name": f"{layer}",
                    "stack": "encoder",
                    "layer": layer,
                    "part": "mlp",
                    "shape": "2x2",
                    "size": 4,
                }
                rows["tensors"].append(variant | place | {"error": 0.1 * layer * share if method == "wanda" else ""})
            if text:
                cell = variant | {"task": "text", "recipe": "", "mask": "", "seed": ""}
                rows["metrics"].append(cell | {"metric": "perplexity", "value": 30 * 10**share})
                rows["metrics"].append(cell | {"metric": "nll", "value": 3.0})
                for recipe in recovered if method != "dense" else ("kept",) * bool(recovered):
                    trained = cell | {"recipe": recipe, "mask": "kept", "seed": 0, "metric": "perplexity"}
                    rows["metrics"].append(trained | {"value": 20 * (2 if recipe == "kept" else 1.5) ** (2 * share)})
            for recipe, seed in itertools.product(recipes if method != "dense" else ("kept",), range(seeds)):
                mask = "released" if recipe == "released" else "kept"
                cell = variant | {"task": "sst2", "recipe": recipe, "mask": mask, "seed": seed}
                lost = (0.1 if recipe == "gradual" else 0.3) * share
                value = 0.9 - lost - 0.02 * number + 0.01 * generator.standard_normal()
                rows["metrics"] += [cell | {"metric": m, "value": value} for m in ("accuracy", "f1", "combined")]
                machine = {"device": "cpu", "threads": 1, "processes": 1}
                versions = dict.fromkeys(("torch", "transformers", "accelerate", "python"), "1.0")
                facts = {
                    "epochs": 2,
                    "validation_examples": 400,
                    "measured_sparsity": 0.01 if mask == "released" else share,
                }
                names = [name for name in COLUMNS["runs"] if name.endswith(("seconds", "second", "bytes"))]
                rows["runs"].append(cell | dict.fromkeys(names, 10.0 + number) | machine | versions | facts)
                rows["history"] += [
                    cell | {"epoch": int(step == 20), "step": step, "measured_sparsity": share / step}
                    for step in (1, 5, 20)
                ]
        dense = {"model": model, "method": "dense", "scope": "", "sparsity": "0", "calibration_seed": 0}
        for level, stack, layer in [("overall", "", -1), *(("layer", "encoder", layer) for layer in range(-1, 4))]:
            place = dense | {"level": level, "name": f"{stack} {layer}", "stack": stack, "layer": layer, "part": ""}
            for statistic in ("count", "zeros", "mean", "std", "min", "max"):
                rows["weights"].append(place | {"statistic": statistic, "x": "", "value": 1.0 + layer})
            for x in (0.001, 0.01, 0.1):
                rows["weights"].append(place | {"statistic": "share_below", "x": x, "value": x})
            for x in np.logspace(-5, 1, 30):
                below = 1 - np.exp(-x * 30 / (layer + 3))
                rows["weights"].append(place | {"statistic": "cumulative", "x": x, "value": below})
            if level == "overall":
                for x in np.linspace(-1, 1, 21)[:-1]:
                    rows["weights"].append(
                        place | {"statistic": "histogram", "x": x, "value": 1e6 * np.exp(-9 * x * x)}
                    )
    rows["baselines"] = [{"task": "sst2", "metric": m, "value": 0.5} for m in ("accuracy", "f1", "combined")]
    folder.mkdir()
    tables = {name: pd.DataFrame(rows[name], columns=columns) for name, columns in COLUMNS.items()}
    tables["claims"] = check(tables)
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False)
    return {"name": "made-up", "study": [{"models": models}]}
