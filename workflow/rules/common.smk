# Shared by all rules: the validated config, the cells of the study, and the two params that every job has.
#
#   settings  one sorted JSON string with exactly the values that the job uses
#   code      a hash of the code that can shape the job's result
#
# Snakemake compares these two and the inputs. Nothing else makes a job run again.

import json
import re
import shlex
import sys
from pathlib import Path

WORKFLOW = Path(str(workflow.current_basedir)).resolve().parents[1]
sys.path.insert(0, str(WORKFLOW / "workflow"))

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.families import family_name
from llm_sparsity.storage.files import read_json, sha256
from llm_sparsity.study import config as study_config
from llm_sparsity.study import footprint, methods, plan
from llm_sparsity.study.cells import DENSE, Run, Variant
from llm_sparsity.study.fingerprint import code_hash

# Jobs run this Python with the library beside this file, so that the hashed code is the code that runs. The paths are
# variables of the environment, not part of the commands: a moved checkout makes nothing run again.
# TQDM_MININTERVAL: one progress line every ten seconds keeps logs short.
EXPORTS = (
    f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH" TQDM_MININTERVAL=10'
    f" LLM_SPARSITY={shlex.quote(str(WORKFLOW))} PYTHONPATH={shlex.quote(str(WORKFLOW / 'workflow'))}; "
)
shell.prefix(EXPORTS.replace("{", "{{").replace("}", "}}"))

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
    """A pattern that matches these names only."""
    return "|".join(map(re.escape, names)) or "(?!)"


# --- inputs ---


def model_folder(wildcards):
    """The folder of a variant."""
    if wildcards.variant == "dense":
        return f"resources/models/{wildcards.model}"
    return f"results/{wildcards.model}/{wildcards.variant}/model"


def model_manifest(wildcards):
    """The manifest of a variant's folder, which holds the hash of its weights: Snakemake compares it by content."""
    return f"{model_folder(wildcards)}/manifest.json"


def model_weights(wildcards):
    """The weights of a variant. Rules mark them as ancient: the manifest tells whether they changed."""
    return f"{model_folder(wildcards)}/model.safetensors"


def harness_manifest(wildcards):
    """lm-evaluation-harness, for the tasks that it scores."""
    return "resources/harness/manifest.json" if STUDY.tasks[wildcards.task].kind == "zero-shot" else []


def calibration_manifest(wildcards):
    """The text of a calibrated method."""
    if Variant.parse(wildcards.pruned).method in methods.CALIBRATED:
        return f"resources/tasks/{STUDY.calibration.task}/manifest.json"
    return []


def training_text(wildcards):
    """The task whose text a run trains on, if it is not the run's own."""
    text = STUDY.tasks[wildcards.task].train_on
    return f"resources/tasks/{text}/manifest.json" if text else []


def dense_run(file):
    """A file of the fine-tuned dense model, for recipes with a schedule or a teacher."""

    def path(wildcards):
        if not STUDY.recipe(wildcards.recipe).needs_dense:
            return []
        return f"{Run(wildcards.model, DENSE, wildcards.task, 'kept', wildcards.seed).folder}/model/{file}"

    return path


def named_file(key):
    """A file that the config names, relative to the working directory or to this workflow; nothing if it names none."""
    value = getattr(STUDY, key)
    if value is None:
        return []
    for path in (Path(value), WORKFLOW / value):
        if path.is_file():
            return str(path)
    sys.exit(f"error: config: {key}: found {value!r}, which is no file; correct the path")


def claims_numbers():
    """The table of an earlier study's numbers, which the file of its claims names: its line `numbers: FILE`."""
    claims = named_file("claims")
    found = re.search(r"^ *numbers: *(\S+)", Path(claims).read_text(encoding="utf-8"), re.MULTILINE) if claims else None
    return str(Path(claims).parent / found[1]) if found else []


# --- params ---


def settings(**values):
    """The values that a job uses, as one string: Snakemake compares what the script reads."""
    return json.dumps(values, sort_keys=True)


def code(stage, modules=(), symbols=(), files=()):
    """The hash of the code of a stage."""
    return code_hash(
        WORKFLOW / "scripts" / f"{stage}.py", modules=tuple(modules), symbols=tuple(symbols), files=tuple(files)
    )


def model_code(stage, modules=lambda wildcards: ()):
    """The hash of the code of a stage, with only the family of the job's model: a new family affects no other model."""

    # Snakemake does not compare the value of a function that has an argument `input`; this one's value counts.
    def hashed(wildcards, **job):
        manifest = read_json(Path(job["input"].model))  # does not exist yet: Snakemake asks again after it is made
        family = family_name(manifest["model_type"])
        return code(stage, modules(wildcards), [f"llm_sparsity.models.families.{family}"])

    return hashed


def prune_modules(wildcards):
    """The modules that a method alone needs: a change in one method, or in calibration, affects no other method."""
    method = Variant.parse(wildcards.pruned).method
    calibrated = ["llm_sparsity.pruning.calibrated"] if method in methods.CALIBRATED else []
    return [f"llm_sparsity.pruning.methods.{method}", *calibrated]


def prune_settings(wildcards):
    variant = Variant.parse(wildcards.pruned)
    chosen = STUDY.prune_settings(variant.method, variant.calibration_seed)
    return settings(method=variant.method, scope=variant.scope, sparsity=str(variant.sparsity), **chosen)


def finetune_settings(wildcards):
    return settings(**STUDY.run_settings(wildcards.task, wildcards.recipe, int(wildcards.seed)))


def evaluate_settings(wildcards):
    return settings(**STUDY.evaluate_settings(wildcards.task))


# --- resources: they shape no result, so a change makes nothing run again ---


def finetune_gpus(wildcards):
    return STUDY.models[wildcards.model].gpus


def accelerate(wildcards):
    return STUDY.models[wildcards.model].accelerate


def save_minutes(wildcards):
    return STUDY.finetune_settings(wildcards.task, wildcards.recipe)["save_minutes"]


def prune_gpus(wildcards):
    return int(Variant.parse(wildcards.pruned).method in methods.CALIBRATED)


def axes(wildcards):
    """The task, recipe and method of a job, as far as it has them."""
    found = {axis: wildcards[axis] for axis in ("task", "recipe") if axis in wildcards.keys()}
    if "pruned" in wildcards.keys():
        found["method"] = Variant.parse(wildcards.pruned).method
    return found


def runtime(stage):
    """Minutes that a job may take, twice the plan's: batch systems enforce it, pilots start the longest jobs first."""

    def minutes(wildcards):
        # A process that runs a single job leaves out measured minutes: it would read the results of all others.
        measured = workflow.is_main_process
        found, _ = plan.minutes(STUDY, stage, wildcards.model, measured=measured, **axes(wildcards))
        return 5 + round(2 * found)

    return minutes


def space(estimate, stage):
    """Megabytes that a job may take, of memory or disk, from its model and variant."""

    def megabytes(wildcards):
        variant = wildcards.get("variant", wildcards.get("pruned", ""))
        return estimate(STUDY, stage, wildcards.get("model", ""), variant=variant, **axes(wildcards))

    return megabytes


def memory(stage):
    return space(footprint.mem_mb, stage)


def disk(stage):
    return space(footprint.disk_mb, stage)


# --- before the first job ---


def show_plan():
    """Print what a run on a batch system will take, before it asks for nodes."""
    if not workflow.local_exec:
        from snakemake_executor_plugin_parsl import advice

        queues = advice.queues(WORKFLOW / "profiles/polaris/queues.csv")
        print(plan.table(STUDY), advice.advise(plan.jobs(STUDY), queues), sep="\n\n", file=sys.stderr)


def refuse_unreachable_sources():
    """Stop before any job if a hub source is neither cached nor reachable."""
    from importlib.util import find_spec

    if find_spec("torch") is None or find_spec("huggingface_hub") is None:
        sys.exit(
            "error: this environment can plan (-n) but not run; pip install -r envs/requirements.txt, or use ./run"
        )
    from llm_sparsity.data.hub import missing_offline

    lines = {
        missing_offline(entry.source.model_dump(exclude_none=True), kind, list(getattr(entry, "files", {}).values()))
        for kind, entry in wanted_entries()
    }
    if lines - {None}:
        sys.exit("\n".join(sorted(f"error: {line}" for line in lines if line)))


def wanted_entries():
    """The models and tasks of the study that are not downloaded yet."""
    models = {model for model, _ in CELLS.variants}
    for kind, names, entries in (("model", models, STUDY.models), ("task", STUDY.wanted_tasks(), STUDY.tasks)):
        for name in sorted(names):
            if not Path(f"resources/{kind}s/{name}/manifest.json").exists():
                yield kind, entries[name]
