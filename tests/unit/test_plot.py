"""Figures and the page. All numbers are MADE UP."""

import html.parser
import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from llm_sparsity.collect import COLUMNS
from llm_sparsity.plot import _groups, _resolution, plot

LEVELS = ["0", "0.5", "0.9"]


def write_tables(
    folder: Path,
    models: list[str],
    methods: list[str],
    seeds: int = 1,
    text: bool = True,
    recipes: tuple[str, ...] = ("kept",),
) -> dict[str, Any]:
    """Tables of a made-up study; the config that goes with them."""
    generator = np.random.default_rng(0)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in COLUMNS}
    for number, model in enumerate(models):
        for method, level in [("dense", "0"), *itertools.product(methods, LEVELS[1:])]:
            variant = {
                "model": model,
                "method": method,
                "scope": "" if method == "dense" else "linear",
                "sparsity": level,
            }
            share = float(level)
            rows["sizes"].append(
                variant | {"measured_sparsity": share, "bytes": 10, "dense_bytes": 10, "ratio": 1 - share}
            )
            if text:
                cell = variant | {"task": "text", "recipe": "", "mask": "", "seed": ""}
                rows["metrics"].append(cell | {"metric": "perplexity", "value": 30 * 10**share})
                rows["metrics"].append(cell | {"metric": "nll", "value": 3.0})
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
        dense = {"model": model, "method": "dense", "scope": "", "sparsity": "0"}
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
    for name, columns in COLUMNS.items():
        pd.DataFrame(rows[name], columns=columns).to_csv(folder / f"{name}.csv", index=False)
    return {"name": "made-up", "study": [{"models": models}]}


class Page(html.parser.HTMLParser):
    """What a browser would have to fetch, and the images without a text for those who do not see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.silent = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        for key in ("src", "href"):
            if (value := values.get(key)) and not value.startswith(("data:", "#")):
                self.fetched.append(value)
        self.silent += tag == "img" and not values.get("alt")


@pytest.mark.parametrize(
    ("models", "methods", "seeds", "recipes"),
    [
        (["minilm"], ["magnitude"], 1, ("kept",)),
        (["roberta-base", "gpt2", "bart-base"], ["magnitude", "uniform"], 3, ("kept", "released", "gradual")),
    ],
)
def test_figures_and_page(
    models: list[str], methods: list[str], seeds: int, recipes: tuple[str, ...], tmp_path: Path
) -> None:
    config = write_tables(tmp_path / "tables", models, methods, seeds, recipes=recipes)
    plot(tmp_path / "tables", tmp_path, config=config)
    names = {path.stem for path in (tmp_path / "figures").glob("*.svg")}
    expected = {f"{metric}-sst2" for metric in ("accuracy", "f1", "combined", "train-time")} | {
        "perplexity-text", "size", "frontier-sst2", "frontier-text",
    }  # fmt: skip
    expected |= {f"{kind}-{model}" for kind in ("weights", "layers") for model in models}
    assert names == expected | ({"regrowth-sst2"} if "released" in recipes else set())
    assert names == {path.stem for path in (tmp_path / "figures").glob("*.png")}
    page = Page((tmp_path / "report.html").read_text())
    assert page.fetched == []
    assert page.silent == 0
    summary = (tmp_path / "summary.txt").read_text()
    assert "accuracy on sst2, by sparsity" in summary
    assert all(model in summary for model in models)


def test_the_same_tables_give_the_same_bytes(tmp_path: Path) -> None:
    config = write_tables(tmp_path / "tables", ["minilm"], ["magnitude"], 2)
    for name in ("1", "2"):
        plot(tmp_path / "tables", tmp_path / name, config=config)
    for path in sorted((tmp_path / "1/figures").iterdir()):
        assert path.read_bytes() == (tmp_path / "2/figures" / path.name).read_bytes(), path.name


def test_the_answer_is_made_from_the_tables(tmp_path: Path) -> None:
    config = write_tables(tmp_path / "tables", ["minilm"], ["magnitude"], 1, recipes=("kept", "released"))
    plot(tmp_path / "tables", tmp_path, config=config)
    summary = (tmp_path / "summary.txt").read_text()
    assert "minilm on sst2: no sparsity tried stays within 2 points of accuracy of dense" in summary
    assert "of 90% asked for, 1.0% are left after fine-tuning" in summary
    assert "takes 10.0% of its dense file" in summary


@pytest.mark.parametrize(("examples", "accuracy", "band"), [(408, 0.86, 3.4), (872, 0.93, 1.7)])
def test_what_a_validation_split_can_tell(examples: int, accuracy: float, band: float) -> None:
    """MRPC's and SST-2's, at the accuracies that BERT reaches."""
    metrics = pd.DataFrame([{"task": "t", "metric": "accuracy", "method": "dense", "value": accuracy}])
    runs = pd.DataFrame([{"task": "t", "validation_examples": examples}])
    assert f"is known to ±{band} points (95 %)" in _resolution({"metrics": metrics, "runs": runs}, "t")


def test_a_recipe_has_a_line_and_an_answer_of_its_own(tmp_path: Path) -> None:
    config = write_tables(tmp_path / "tables", ["minilm"], ["magnitude"], 3, recipes=("kept", "gradual"))
    plot(tmp_path / "tables", tmp_path, config=config)
    summary = (tmp_path / "summary.txt").read_text()
    assert "At 90 % (magnitude, gradual) it is" in summary
    kept, gradual = (next(line for line in summary.splitlines() if f" {name} " in line) for name in ("kept", "gradual"))
    assert kept != gradual
    assert kept.count("±") == gradual.count("±") == 3  # three seeds at each of three sparsities


def test_a_study_without_training_has_a_page_too(tmp_path: Path) -> None:
    config = write_tables(tmp_path / "tables", ["smollm2"], ["magnitude"], seeds=0)
    plot(tmp_path / "tables", tmp_path, config=config)
    assert (tmp_path / "figures/perplexity-text.svg").exists()
    assert not (tmp_path / "figures/accuracy-sst2.svg").exists()


def test_five_hundred_runs_are_drawn_in_seconds(tmp_path: Path) -> None:
    """The time is printed, not asserted: it is noise on a busy machine."""
    models, methods = [f"model-{n}" for n in range(10)], [f"method{n}" for n in range(8)]
    config = write_tables(tmp_path / "tables", models, methods, seeds=3, text=False)
    begun = time.perf_counter()
    plot(tmp_path / "tables", tmp_path, config=config)
    print(f"{time.perf_counter() - begun:.1f} s")
    assert len(pd.read_csv(tmp_path / "tables/runs.csv")) == 510
    assert (tmp_path / "report.html").stat().st_size < 20e6


def test_perplexity_says_how_it_was_measured_and_what_was_published(tmp_path: Path) -> None:
    config = write_tables(tmp_path / "tables", ["opt-1.3b"], ["magnitude", "sparsegpt"], seeds=0)
    metrics = pd.read_csv(tmp_path / "tables/metrics.csv", dtype=str).replace({"task": {"text": "wikitext2"}})
    pattern = metrics[(metrics.sparsity == "0.5") & (metrics.method == "sparsegpt")].assign(
        sparsity="2of4", value="999"
    )
    pd.concat([metrics, pattern]).to_csv(tmp_path / "tables/metrics.csv", index=False)
    settings = {"evaluate": {"sequence_length": 2048, "max_tokens": None}}
    plot(tmp_path / "tables", tmp_path, config=config | settings)
    page = html.unescape((tmp_path / "report.html").read_text())
    assert "Measured on the whole text, in windows of 2,048 tokens that do not overlap." in page
    assert "Crosses are published values: Frantar & Alistarh 2023, arXiv:2301.00774." in page
    figure = (tmp_path / "figures/perplexity-wikitext2.svg").read_text()
    assert "2of4" in figure  # a mark of its own: 999 is no seed of 0.5
    assert "FillBetweenPolyCollection" not in figure and "PolyCollection" not in figure


def test_parts_pruned_once_beside_a_swept_scope_are_left_to_their_figure() -> None:
    rows = pd.DataFrame(
        [("dense", "", 0.0), ("magnitude", "linear", 0.3), ("magnitude", "linear", 0.5), ("wanda", "linear", 0.5),
         ("magnitude", "mlp", 0.3), ("magnitude", "attention", 0.3)],
        columns=["method", "scope", "level"],
    )  # fmt: skip
    assert _groups(rows) == [("magnitude", "linear"), ("wanda", "linear")]
    once = rows[rows.level != 0.5]
    assert _groups(once) == [("magnitude", "linear"), ("magnitude", "mlp"), ("magnitude", "attention")]
