"""The rerun contract: edit X, and exactly these jobs are pending."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Project

pytestmark = pytest.mark.workflow

END = ["collect", "plot"]


def runs(
    pruned: str,
    task: str,
    recipes: tuple[str, ...] = ("kept",),
    seeds: tuple[int, ...] = (0,),
    model: str = "roberta-base",
) -> list[str]:
    return [
        f"finetune model={model} variant={pruned} task={task} recipe={recipe} seed={seed}"
        for recipe in recipes
        for seed in seeds
    ]


def pruned(model: str, variant: str) -> list[str]:
    return [f"prune model={model} pruned={variant}", f"weights model={model} variant={variant}"]


MRPC = [
    *runs("dense", "mrpc", seeds=(0, 1)),
    *runs("magnitude-linear-0.5", "mrpc", ("kept", "released"), (0, 1)),
]
SST2 = [
    job
    for model in ("roberta-base", "gpt2", "bart-base")
    for variant in ("dense", "magnitude-all-0.9")
    for job in runs(variant, "sst2", model=model)
]
EVALUATE = [f"evaluate model=gpt2 variant={variant} task=lines" for variant in ("dense", "uniform-linear-0.5")]
VARIANTS = [
    ("roberta-base", "dense"), ("roberta-base", "magnitude-all-0.9"), ("roberta-base", "magnitude-linear-0.5"),
("gpt2", "dense"), ("gpt2", "magnitude-all-0.9"),
    ("gpt2", "uniform-linear-0.5"), ("bart-base", "dense"), ("bart-base", "magnitude-all-0.9"),
]  # fmt: skip
LIBRARY = "workflow/llm_sparsity/"


def config(change: Callable[[dict], object]) -> Callable[[Project], None]:
    return lambda project: project.configure(lambda values: change(values) and None)


def appended(file: str, text: str) -> Callable[[Project], None]:
    return lambda project: project.edit(file, lambda source: source + text)


def touched(project: Project) -> None:
    for path in project.folder.rglob("*"):
        if path.is_file() and ".snakemake" not in path.parts:
            os.utime(path)


def cloned(project: Project) -> None:
    """The code is cloned anew beside finished results: new times, same content."""
    for name in ("workflow", "scripts"):
        old = project.folder / f"{name}.old"
        (project.folder / name).rename(old)
        shutil.copytree(old, project.folder / name, copy_function=shutil.copyfile)
        shutil.rmtree(old)


CASES: dict[str, tuple[Callable[[Project], object], list[str]]] = {
    "nothing": (lambda project: None, []),
    "touched files": (touched, []),
    "fresh clone": (cloned, []),
    "comment in a library module": (appended(f"{LIBRARY}finetune.py", "\n# a remark\n"), []),
    "docstring of a module": (
        lambda project: project.edit(f"{LIBRARY}finetune.py", lambda source: source.replace('"""', '"""Anew. ', 1)),
        [],
    ),
    "learning rate of one task": (
        config(lambda values: values["tasks"]["mrpc"].update(finetune={"epochs": 1, "learning_rate": 1e-4})),
        [*MRPC, *END],
    ),
    "new sparsity": (
        config(lambda values: values["study"][1]["sparsities"].append(0.7)),
        [
            *pruned("roberta-base", "magnitude-linear-0.7"),
            *runs("magnitude-linear-0.7", "mrpc", ("kept", "released"), (0, 1)), *END,
        ],
    ),
    "new seed": (
        config(lambda values: values["study"][1]["seeds"].append(2)),
        [
            *runs("dense", "mrpc", seeds=(2,)),
            *runs("magnitude-linear-0.5", "mrpc", ("kept", "released"), (2,)), *END,
        ],
    ),
    "new task": (
        config(
            lambda values: (
                values["tasks"].update(again=values["tasks"]["sst2"]), values["study"][0]["tasks"].append("again"),
            )
        ),
        ["download_task task=again", *(job.replace("task=sst2", "task=again") for job in SST2), *END],
    ),
    "new model": (
        config(
            lambda values: (
                values["models"].update(other=values["models"]["gpt2"]), values["study"][2]["models"].append("other"),
            )
        ),
        [
            "download_model model=other", "weights model=other variant=dense", *pruned("other", "uniform-linear-0.5"),
            *(job.replace("model=gpt2", "model=other") for job in EVALUATE), *END,
        ],
    ),
    "new method": (
        lambda project: (
            (project.folder / f"{LIBRARY}pruning/another.py").write_text(
                (project.folder / f"{LIBRARY}pruning/random.py").read_text()
            ),
            project.configure(lambda values: values["study"][2]["methods"].append("another")),
        ),
        [
            *pruned("gpt2", "another-linear-0.5"), "evaluate model=gpt2 variant=another-linear-0.5 task=lines", *END,
        ],
    ),
    "code of one method": (
        appended(f"{LIBRARY}pruning/uniform.py", "\nCHANGED = 1\n"),
        [*pruned("gpt2", "uniform-linear-0.5"), EVALUATE[1], *END],
    ),
    "code of plot": (appended(f"{LIBRARY}plot.py", "\nCHANGED = 1\n"), ["plot"]),
    "template of the report": (appended("workflow/report/report.html.jinja", "\n"), ["plot"]),
    "code of evaluate": (appended(f"{LIBRARY}evaluate.py", "\nCHANGED = 1\n"), [*EVALUATE, *END]),
    "code of weights": (
        appended(f"{LIBRARY}weights.py", "\nCHANGED = 1\n"),
        [*(f"weights model={model} variant={variant}" for model, variant in VARIANTS), *END],
    ),
    "code of finetune": (appended(f"{LIBRARY}finetune.py", "\nCHANGED = 1\n"), [*MRPC, *SST2, *END]),
    "revision of one model": (
        config(lambda values: values["models"]["bart-base"]["source"].update(revision="0" * 40)),
        [
            "download_model model=bart-base", "weights model=bart-base variant=dense",
            *pruned("bart-base", "magnitude-all-0.9"), *(job for job in SST2 if "bart-base" in job), *END,
        ],
    ),
    "removed model": (config(lambda values: values["study"][0]["models"].remove("bart-base")), END),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_exactly_these_jobs_are_pending(case: str, project: Project) -> None:
    change, expected = CASES[case]
    change(project)
    assert project.pending() == sorted(expected)


def test_an_identical_result_stops_the_cascade(finished: Project, tmp_path: Path) -> None:
    """A change of pruning's code that changes no byte of the pruned model makes nothing after it run again."""
    folder = tmp_path / "project"
    shutil.copytree(finished.folder, folder)
    project = Project(folder, finished.hub)
    project.edit(f"{LIBRARY}pruning/uniform.py", lambda source: source + "\nCHANGED = 1\n")
    done = project.snakemake(
        "--configfile", "config.yaml", "--cores", "2", "results/gpt2/uniform-linear-0.5/sparsity.csv"
    )
    assert done.returncode == 0, done.stderr
    assert project.pending() == []
