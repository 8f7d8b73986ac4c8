# Shared by all stages: the checked config, the cells of the study, and the two params that every job has.
#
#   settings  one sorted JSON string with exactly the values that the job uses
#   code      a hash of its script and of the library modules that the script reaches
#
# Snakemake compares these two, the script reads the first, the log shows both. Nothing else makes a job run again.

import json
import re
import sys
from pathlib import Path

WORKFLOW = Path(workflow.basedir)
sys.path.insert(0, str(WORKFLOW / "workflow"))

from llm_sparsity.study import config as study_config
from llm_sparsity.study import plan
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.study.fingerprint import code_hash
from llm_sparsity.study.cells import DENSE, Run, Variant

# Scripts run with this Python and the library beside this file: the code that was hashed is the code that runs.
# TQDM_MININTERVAL: a progress line every ten seconds keeps logs short.
shell.prefix(
    f"export PATH='{Path(sys.executable).parent}':\"$PATH\" PYTHONPATH='{WORKFLOW / 'workflow'}' TQDM_MININTERVAL=10; "
)

try:
    STUDY = study_config.load(config)
except UserError as error:
    sys.exit(f"error: {error}")
CELLS = STUDY.cells()


wildcard_constraints:
    model=r"[A-Za-z0-9][\w.-]*",
    variant=r"dense|[a-z]\w*-[a-z]+(\.\d+)*-[\w.]+(-\d+)?",
    pruned=r"[a-z]\w*-[a-z]+(\.\d+)*-[\w.]+(-\d+)?",
    task=r"[A-Za-z0-9][\w.-]*",
    recipe=r"[A-Za-z0-9][\w.-]*",
    seed=r"\d+",


def one_of(names):
    """A pattern of these names alone."""
    return "|".join(map(re.escape, names)) or "(?!)"


def settings(**values):
    """The values that a job uses, as one string: what is compared is what is read."""
    return json.dumps(values, sort_keys=True)


def code(stage, *modules, files=()):
    """The hash of the code that a stage runs."""
    return code_hash(WORKFLOW / "scripts" / f"{stage}.py", modules=modules, files=files)


def model_manifest(wildcards):
    """The small file that stands for a variant's weights: equal content makes nothing run again."""
    if wildcards.variant == "dense":
        return f"resources/models/{wildcards.model}/manifest.json"
    return f"results/{wildcards.model}/{wildcards.variant}/model/manifest.json"


def download_model_settings(wildcards):
    return settings(**STUDY.models[wildcards.model].model_dump(exclude_none=True, include={"architecture", "source"}))


def download_task_settings(wildcards):
    return settings(
        **STUDY.tasks[wildcards.task].model_dump(exclude_none=True, exclude={"finetune", "train_on", "evaluate"})
    )


def harness_manifest(wildcards):
    """What knows the tasks that are scored without training; nothing for other tasks."""
    return "resources/harness/manifest.json" if STUDY.tasks[wildcards.task].kind == "zero-shot" else []


def prune_settings(wildcards):
    variant = Variant.parse(wildcards.pruned)
    chosen = STUDY.prune_settings(variant.method, variant.calibration_seed)
    return settings(method=variant.method, scope=variant.scope, sparsity=variant.sparsity, **chosen)


def prune_code(wildcards):
    # Only the method named: a change in one method, or in calibration, leaves the others alone.
    method = Variant.parse(wildcards.pruned).method
    calibrate = ["llm_sparsity.pruning.calibration"] if method in study_config.CALIBRATED else []
    return code("prune", f"llm_sparsity.pruning.methods.{method}", *calibrate)


def calibration_manifest(wildcards):
    """The text that a method calibrates with; nothing where it needs none."""
    if Variant.parse(wildcards.pruned).method in study_config.CALIBRATED:
        return f"resources/tasks/{STUDY.calibration.task}/manifest.json"
    return []


def finetune_settings(wildcards):
    return settings(**STUDY.run_settings(wildcards.task, wildcards.recipe, int(wildcards.seed)))


def training_text(wildcards):
    """Another task's text that a run is trained on; nothing where it is the task's own."""
    text = STUDY.tasks[wildcards.task].train_on
    return f"resources/tasks/{text}/manifest.json" if text else []


def dense_run(wildcards):
    """The run whose weights a recipe with a schedule or a teacher starts from."""
    if not STUDY.recipe(wildcards.recipe).needs_dense:
        return []
    return f"{Run(wildcards.model, DENSE, wildcards.task, 'kept', wildcards.seed).folder}/checkpoints.csv"


def save_minutes(wildcards):
    # Shapes no result, so it is a resource: a change makes nothing run again.
    return STUDY.finetune_settings(wildcards.task, wildcards.recipe)["save_minutes"]


def evaluate_settings(wildcards):
    return settings(**STUDY.evaluate_settings(wildcards.task))


def finetune_gpus(wildcards):
    return STUDY.models[wildcards.model].gpus


def accelerate(wildcards):
    # Shapes no result but by rounding, as the number of GPUs.
    return STUDY.models[wildcards.model].accelerate


def prune_gpus(wildcards):
    return int(Variant.parse(wildcards.pruned).method in study_config.CALIBRATED)


def runtime(stage):
    """Minutes that a job may take, twice what the plan says: batch systems keep it, pilots start the longest first."""

    def minutes(wildcards):
        axes = {axis: wildcards[axis] for axis in ("task", "recipe") if axis in wildcards.keys()}
        if stage == "prune":
            axes["method"] = Variant.parse(wildcards.pruned).method
        took, _ = plan.minutes(STUDY, stage, wildcards.model, **axes)
        return 5 + round(2 * took)

    return minutes


def show_plan():
    """What a run on batch jobs will take, before the first of them is asked for."""
    if not workflow.local_exec:
        print(plan.table(STUDY, plan.queues(WORKFLOW / "profiles/polaris/queues.csv")), file=sys.stderr)


def refuse_unreachable_sources():
    """Stop before any job when something has to come from a hub that cannot be reached."""
    from importlib.util import find_spec

    from llm_sparsity.data.download import missing_offline

    if find_spec("torch") is None or find_spec("huggingface_hub") is None:
        sys.exit(
            "error: this environment can plan (-n) but not run; pip install -r envs/requirements.txt, or use ./run"
        )
    lines = {
        missing_offline(entry.source.model_dump(exclude_none=True), kind, list(getattr(entry, "files", {}).values()))
        for kind, entry in wanted_entries()
    }
    if lines - {None}:
        sys.exit("\n".join(sorted(f"error: {line}" for line in lines if line)))


def wanted_entries():
    """The models and tasks that the study needs and has not got yet."""
    models = {model for model, _ in CELLS.variants}
    for kind, names, entries in (("model", models, STUDY.models), ("task", STUDY.wanted_tasks(), STUDY.tasks)):
        for name in sorted(names):
            if not Path(f"resources/{kind}s/{name}/manifest.json").exists():
                yield kind, entries[name]
