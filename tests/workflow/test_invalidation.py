"""The rerun contract: edit X, and exactly these jobs are pending."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.marks import slow_but

from .conftest import Project, copied

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
    return [f"prune model={model} pruned={variant}"]


def measured(model: str, variant: str) -> list[str]:
    return [f"measure model={model} variant={variant}"]


def one_shot(variant: str) -> list[str]:
    """A variant of the fine-tuned model, and its run."""
    return [
        f"prune_finetuned model=roberta-base pruned={variant} task=mrpc seed=0",
        *runs(variant, "mrpc", ("one-shot",)),
    ]


RECIPES = ("kept", "brief", "released")
UNIFORM, STRUCTURED = "uniform-linear-0.5", "structured-linear-0.5"
WANDA, CHAIN, INT8 = "wanda-linear-0.5", "wanda+swaps-linear-0.5", "int8-linear-0"
MRPC = [
    *runs("dense", "mrpc"), *runs("magnitude-linear-0.5", "mrpc", RECIPES), *one_shot(CHAIN), *one_shot(INT8),
]  # fmt: skip
SST2 = [
    job
    for model in ("roberta-base", "bart-base")
    for variant in ("dense", "magnitude-all-0.9")
    for job in runs(variant, "sst2", model=model)
]


def evaluations(*variants: str, model: str = "gpt2") -> list[str]:
    return [f"evaluate model={model} variant={variant} task=lines" for variant in variants]


def recovered(variant: str) -> list[str]:
    """A variant's jobs on the text that it is trained on."""
    recipes = ("kept",) if variant == "dense" else ("kept", "lora")
    return [f"evaluate model=gpt2 variant={variant} task=text", *runs(variant, "text", recipes, model="gpt2")]


TEXT = [*recovered("dense"), *recovered(WANDA)]
EVALUATE = [
    *evaluations("dense", UNIFORM, STRUCTURED, WANDA),
    *(job for job in TEXT if job.startswith("evaluate")),
]
TRAINED = [*MRPC, *SST2, *(job for job in TEXT if job.startswith("finetune"))]
MEASURED = [("roberta-base", "dense"), ("roberta-base", "magnitude-linear-0.5")]
VARIANTS = [
    *MEASURED, ("roberta-base", "magnitude-all-0.9"),
    *(("bart-base", variant) for variant in ("dense", "magnitude-all-0.9")),
    *(("gpt2", variant) for variant in ("dense", UNIFORM, STRUCTURED, WANDA)),
]  # fmt: skip
WEIGHTS = [f"weights model={model} variant={variant}" for model, variant in VARIANTS if variant == "dense"]
PRUNES = [f"prune model={model} pruned={variant}" for model, variant in VARIANTS if variant != "dense"]
STAGES = [*PRUNES, *WEIGHTS, *(job for cell in MEASURED for job in measured(*cell)), *EVALUATE, *TRAINED]
PRUNED = [job for job in STAGES if "variant=dense" not in job]  # prune, and all that follows
CALIBRATED = [
    *pruned("gpt2", WANDA), *evaluations(WANDA), *recovered(WANDA), *one_shot(CHAIN),
]  # fmt: skip
DOWNLOADS = [
    *(f"download_model model={model}" for model in ("roberta-base", "gpt2", "bart-base")),
    *(f"download_task task={task}" for task in ("sst2", "mrpc", "lines", "text")),
]
LIBRARY = "workflow/llm_sparsity/"


def config(change: Callable[[dict], object]) -> Callable[[Project], None]:
    return lambda project: project.configure(lambda values: change(values) and None)


def appended(file: str, text: str) -> Callable[[Project], None]:
    return lambda project: project.edit(file, lambda source: source + text)


def replaced_by_older(file: str) -> Callable[[Project], None]:
    """Another file is moved in place, as out of an archive: its time is before the results."""

    def change(project: Project) -> None:
        appended(file, "\n")(project)
        os.utime(project.folder / file, (0, 0))

    return change


def touched(project: Project) -> None:
    for path in sorted(
        project.folder.rglob("*")
    ):  # reports before the results that they are made of, tables last of them
        if path.is_file() and ".snakemake" not in path.parts:
            os.utime(path)


def replaced(file: str, old: str, new: str) -> Callable[[Project], None]:
    """An edit of the code: every occurrence of `old`."""
    return lambda project: project.edit(file, lambda source: source.replace(old, new))


def edited(project: Project) -> None:
    """Other rows in a file that the config names, with the time of a file that was moved there."""
    project.edit("inputs/lines.txt", lambda text: text.upper())
    os.utime(project.folder / "inputs/lines.txt", (0, 0))


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
    "comment in a library module": (appended(f"{LIBRARY}training/finetune.py", "\n# a remark\n"), []),
    "error message of a shared module": (
        replaced(f"{LIBRARY}storage/files.py", "so this folder is not complete", "this folder is incomplete"), [],
    ),
    "error message of the container": (
        replaced(f"{LIBRARY}storage/container.py", "make or download it again", "make it again"), [],
    ),
    "progress bar": (replaced(f"{LIBRARY}evaluation/weights.py", 'desc="', 'desc="all '), []),
    "help text of a script": (replaced("scripts/finetune.py", 'help="', 'help="that is, '), []),
    "options of every command line": (appended(f"{LIBRARY}jobs/command.py", "\nCHANGED = 1\n"), []),
    "function that nothing calls": (
        appended(f"{LIBRARY}storage/files.py", "\ndef unused() -> int:\n    return 1\n"), [],
    ),
    "docstring of a module": (
        lambda project: project.edit(
            f"{LIBRARY}storage/files.py", lambda source: source.replace('"""', '"""Anew. ', 1)
        ),
        [],
    ),
    "learning rate of one task": (
        config(lambda values: values["tasks"]["mrpc"].update(finetune={"epochs": 1, "learning_rate": 1e-4})),
        [*MRPC, *END],
    ),
    "minutes between saves": (  # the page tells the config
        config(lambda values: values["finetune"].update(save_minutes=1)), ["plot"],
    ),
    "tracker": (config(lambda values: values.update(tracker="tensorboard")), []),
    "parameters of a model": (  # which the plan alone reads
        config(lambda values: values["models"]["gpt2"].update(parameters=7e9)), [],
    ),
    "GPUs of a run": (config(lambda values: values["models"]["gpt2"].update(gpus=4, accelerate="fsdp")), ["plot"]),
    "head of a model": (
        config(lambda values: values["models"]["bart-base"].update(head="sst2")),
        ["download_model model=bart-base", *(job for job in STAGES if "model=bart-base" in job), *END],
    ),
    "setting of one recipe": (
        config(lambda values: values["recipes"]["brief"]["distill"].update(hidden=2)),
        [*runs("magnitude-linear-0.5", "mrpc", ("brief",)), *END],
    ),
    "new recipe": (
        config(
            lambda values: (
                values["recipes"].update(long={"finetune": {"epochs": 3}}),
                values["study"][0]["recipes"].append("long"),
            )
        ),
        [*runs("magnitude-linear-0.5", "mrpc", ("long",)), *END],
    ),
    "new sparsity": (
        config(lambda values: values["study"][0]["sparsities"].append(0.7)),
        [
            *pruned("roberta-base", "magnitude-linear-0.7"), *measured("roberta-base", "magnitude-linear-0.7"),
            *runs("magnitude-linear-0.7", "mrpc", RECIPES), *END,
        ],
    ),
    "new seed": (
        config(lambda values: values["study"][0]["seeds"].append(1)),
        [
            *runs("dense", "mrpc", seeds=(1,)),
            *runs("magnitude-linear-0.5", "mrpc", RECIPES, (1,)), *END,
        ],
    ),
    "new scope": (
        config(lambda values: values["study"][1]["scopes"].append([0])),
        [
            *(job for method in ("uniform", "structured") for job in pruned("gpt2", f"{method}-layers.0-0.5")),
            *evaluations("uniform-layers.0-0.5", "structured-layers.0-0.5"), *END,
        ],
    ),
    "new task": (
        config(
            lambda values: (
                values["tasks"].update(again=values["tasks"]["sst2"]), values["study"][3]["tasks"].append("again"),
            )
        ),
        ["download_task task=again", *(job.replace("task=sst2", "task=again") for job in SST2), *END],
    ),
    "new task of the harness": (
        config(
            lambda values: (
                values["tasks"].update(
                    rte={
                        "kind": "zero-shot", "harness": "rte", "source": values["tasks"]["sst2"]["source"],
                        "files": {"validation": "rte/validation-00000-of-00001.parquet"},
                    }
                ),
                values["study"][4]["tasks"].append("rte"),
            )
        ),
        [
            "download_harness", "download_task task=rte",
            *(f"zero_shot model=gpt2 variant={variant} task=rte" for variant in ("dense", WANDA)), *END,
        ],
    ),
    "new model": (
        config(
            lambda values: (
                values["models"].update(other=values["models"]["gpt2"]), values["study"][1]["models"].append("other"),
            )
        ),
        [
            "download_model model=other", "weights model=other variant=dense",
            *pruned("other", UNIFORM), *pruned("other", STRUCTURED),
            *evaluations("dense", UNIFORM, STRUCTURED, model="other"), *END,
        ],
    ),
    "new method": (
        lambda project: (
            (project.folder / f"{LIBRARY}pruning/methods/another.py").write_text(
                (project.folder / f"{LIBRARY}pruning/methods/random.py").read_text()
            ),
            project.configure(lambda values: values["study"][1]["methods"].append("another")),
        ),
        [*pruned("gpt2", "another-linear-0.5"), *evaluations("another-linear-0.5"), *END],
    ),
    "code of one method": (
        appended(f"{LIBRARY}pruning/methods/uniform.py", "\nCHANGED = 1\n"),
        [*pruned("gpt2", UNIFORM), *evaluations(UNIFORM), *END],
    ),
    "code of a calibrated method": (
        appended(f"{LIBRARY}pruning/methods/wanda.py", "\nCHANGED = 1\n"),
        [*CALIBRATED, *END],
    ),
    "code of a step": (
        appended(f"{LIBRARY}pruning/steps/swaps.py", "\nCHANGED = 1\n"),
        [*one_shot(CHAIN), *END],
    ),
    "code of calibration": (
        replaced(f"{LIBRARY}pruning/calibration.py", "TOKENS = 2048", "TOKENS = 2047"),
        [*CALIBRATED, *END],
    ),
    "another calibration seed": (
        config(lambda values: values["calibration"].update(seeds=[0, 1])),
        [*(job.replace("-linear-0.5", "-linear-0.5-1") for job in CALIBRATED), *END],
    ),
    "layerwise sparsity": (
        config(lambda values: values.update(prune={"layerwise": "owl"})),
        [*CALIBRATED, *END],
    ),
    "another calibration text": (
        config(
            lambda values: (
                values["tasks"].update(more=values["tasks"]["lines"]), values["calibration"].update(task="more"),
            )
        ),
        ["download_task task=more", *(job for job in CALIBRATED if "task=mrpc" not in job), *END],
    ),
    "another training text": (
        config(
            lambda values: (
                values["tasks"].update(more=values["tasks"]["lines"]),
                values["tasks"]["text"].update(train_on="more"),
            )
        ),
        ["download_task task=more", *(job for job in TEXT if job.startswith("finetune")), *END],
    ),
    "sentences without labels": (
        config(
            lambda values: (
                values["tasks"].update(more=values["tasks"]["mrpc"]),
                values["tasks"]["mrpc"].update(unlabelled="more"),
                values["recipes"]["brief"]["distill"].update(unlabelled=True),
            )
        ),
        ["download_task task=more", *runs("magnitude-linear-0.5", "mrpc", ("brief",)), *END],
    ),
    "seed of pruning": (
        config(lambda values: values.update(prune={"seed": 1})),
        [
            *(job for cell in VARIANTS if cell[1] not in ("dense", WANDA) for job in pruned(*cell)),
            *(job for cell in MEASURED if cell[1] != "dense" for job in measured(*cell)),
            *(job for job in EVALUATE if "dense" not in job and WANDA not in job),
            *(job for job in [*MRPC, *SST2] if not any(word in job for word in ("dense", CHAIN, INT8))), *END,
        ],
    ),
    "code of plot": (replaced(f"{LIBRARY}reporting/figures/style.py", "#0072B2", "#0072B3"), ["plot"]),
    "template of the report": (appended("workflow/llm_sparsity/reporting/report.html.jinja", "\n"), ["plot"]),
    "code of evaluate": (replaced(f"{LIBRARY}evaluation/evaluate.py", "CHUNK = 256", "CHUNK = 255"), [*EVALUATE, *END]),
    "windows that perplexity is measured on": (
        config(lambda values: values["evaluate"].update(sequence_length=16)),
        [*EVALUATE, *(job for job in TEXT if job.startswith("finetune")), *END],
    ),
    "code of low-rank updates": (
        replaced(f"{LIBRARY}training/lora.py", "uniform_(-1, 1)", "uniform_(-2, 2)"), [*TRAINED, *END],
    ),
    "code of weights": (
        replaced(f"{LIBRARY}evaluation/weights.py", "BINS = 201", "BINS = 203"),
        [*WEIGHTS, *END],
    ),
    "code of finetune": (
        replaced(f"{LIBRARY}training/trainer.py", "FIRST_STEPS = (1, 2, 5,", "FIRST_STEPS = (1, 2, 3, 5,"),
        [*TRAINED, *END],
    ),
    "code of the mask": (replaced(f"{LIBRARY}training/mask.py", "== 0", "== 0.0"), [*TRAINED, *END]),
    "code of selection": (
        replaced(f"{LIBRARY}pruning/selection.py", "BINS = 1 << 16", "BINS = 2 << 15"),
        [*PRUNED, *END],
    ),
    "code of atomic writes": (
        replaced(f"{LIBRARY}storage/files.py", "os.O_RDONLY", "os.O_RDONLY | os.O_CLOEXEC"),
        [*DOWNLOADS, *STAGES, *END],
    ),
    "words that no structure tells": (
        replaced(f"{LIBRARY}models/roles.py", "attn|attention", "attention|attn"), [*DOWNLOADS, *STAGES, *END],
    ),
    "claims of an earlier study": (appended("studies/report/claims.yaml", "\n"), END),
    "numbers of an earlier study": (appended("studies/report/numbers.csv", "\n"), END),
    "published values": (appended("studies/published.csv", "\n"), ["plot"]),
    "older claims": (replaced_by_older("studies/report/claims.yaml"), END),
    "older numbers": (replaced_by_older("studies/report/numbers.csv"), END),
    "older published values": (replaced_by_older("studies/published.csv"), ["plot"]),
    "rows of a task edited in place": (
        edited,
        [
            "download_task task=lines", "download_task task=text", *pruned("gpt2", WANDA), *EVALUATE,
            *(job for job in TEXT if job.startswith("finetune")), *END,
        ],
    ),
    "revision of one model": (
        config(lambda values: values["models"]["bart-base"]["source"].update(revision="0" * 40)),
        [
            "download_model model=bart-base", "weights model=bart-base variant=dense",
            *pruned("bart-base", "magnitude-all-0.9"), *(job for job in SST2 if "bart-base" in job), *END,
        ],
    ),
    "removed model": (config(lambda values: values["study"][3]["models"].remove("bart-base")), END),
}  # fmt: skip


# The code of a stage.
FAST = ("code of finetune",)
# More of them. All, with the whole study, are left to `./run test --exhaustive`.
SLOW = (
    "learning rate of one task", "nothing", "new scope", "comment in a library module", "touched files",
    "rows of a task edited in place", "seed of pruning",
)  # fmt: skip
# Cells of the whole study that `finished` is without.
LEFT_OUT = re.compile("bart-base|sst2|-all-|released|structured|int8|task=text|gpt2 .*wanda")


@pytest.mark.parametrize("case", slow_but(FAST, [*FAST, *SLOW]))
def test_exactly_these_jobs_are_pending(case: str, finished: Project, tmp_path: Path) -> None:
    change, expected = CASES[case]
    project = copied(finished, tmp_path / "project")
    change(project)
    assert project.pending() == sorted(job for job in expected if not LEFT_OUT.search(job))


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", CASES)
def test_exactly_these_jobs_of_the_whole_study_are_pending(case: str, whole: Project, tmp_path: Path) -> None:
    change, expected = CASES[case]
    project = copied(whole, tmp_path / "project")
    change(project)
    assert project.pending() == sorted(expected)


@pytest.mark.slow
def test_an_identical_result_stops_the_cascade(finished: Project, tmp_path: Path) -> None:
    """A change of pruning's code that changes no byte of the pruned model makes nothing after it run again."""
    project = copied(finished, tmp_path / "project")
    project.edit(f"{LIBRARY}pruning/methods/uniform.py", lambda source: source + "\nCHANGED = 1\n")
    done = project.snakemake("--configfile", "config.yaml", "--cores", "2", f"results/gpt2/{UNIFORM}/sparsity.csv")
    assert done.returncode == 0, done.stderr
    assert project.pending() == []
