# Shared by all rules: the validated config, the cells of the study, and the two params that every job has.
#
#   settings  one sorted JSON string with exactly the values that the job uses
#   code      a hash of the code that can shape the job's result
#
# Snakemake compares these two and the inputs; of files that cannot be inputs, a third param holds the hash of the content.
# Nothing else makes a job run again.

import atexit
import functools
import hashlib
import json
import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path

from snakemake.io import contains_wildcard
from snakemake.logging import logger

WORKFLOW = Path(str(workflow.current_basedir)).resolve().parents[1]
sys.path.insert(0, str(WORKFLOW / "workflow"))

from llm_sparsity.data.model_files import MODEL_FILES, matching
from llm_sparsity.jobs import driver, failures, forkserver, lease
from llm_sparsity.jobs.command import quoted, run as run_command
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.site import slurm, sources
from llm_sparsity.storage.files import MANIFEST, sha256, write_text
from llm_sparsity.study import config as study_config
from llm_sparsity.study import footprint, methods, plan
from llm_sparsity.study.cells import RESULTS, TASKS, Run, Variant, results_folder, variant_folder
from llm_sparsity.study.document import UNREADABLE, read_config, read_document
from llm_sparsity.study.fingerprint import code_hash

# Jobs run this Python with the library beside this file, so that the hashed code is the code that runs. The paths are
# variables of the environment, not part of the commands: a moved checkout makes nothing run again.
# TQDM_MININTERVAL: one progress line every ten seconds keeps logs short.
shell.prefix(
    f'export PATH={quoted(Path(sys.executable).parent)}:"$PATH" TQDM_MININTERVAL=10'
    f" LLM_SPARSITY={quoted(WORKFLOW)} PYTHONPATH={quoted(WORKFLOW / 'workflow')}; "
)
if ":" in str(WORKFLOW):
    sys.exit(f"error: {WORKFLOW}: PYTHONPATH cannot hold a folder with a colon in its name; rename it")

RULES = {"download": ("download_model", "download_task"), "prune": ("prune", "prune_finetuned")}  # of a stage
LONGEST = 1 << 16  # bytes of a quoted string in a command, of which the kernel takes twice as many
# Rules of jobs that compute; for two such jobs or more, one process imports torch for all.
FORKED = {*RULES["prune"], "weights", "finetune", "evaluate", "zero_shot", "measure"}
LARGE = 1 << 28  # bytes of a file that is hashed at every start, in a fraction of a second

try:
    for file in workflow.configfiles if workflow.is_main_process else ():  # once, not in every job
        read_config(Path(file))  # Snakemake keeps the last of two equal keys
    STUDY = study_config.load(config)
except UserError as error:
    sys.exit(f"error: {error}")
CELLS = STUDY.cells()


wildcard_constraints:
    model=r"[A-Za-z0-9][\w.-]*",
    variant=r"dense|[a-z]\w*(\+\w+)*-[a-z]+(\.\d+)*-[\w.]+(-\d+)?",
    pruned=r"[a-z]\w*(\+\w+)*-[a-z]+(\.\d+)*-[\w.]+(-\d+)?",
    task=r"[A-Za-z0-9][\w.-]*",
    recipe=r"[A-Za-z0-9][\w.-]*",
    seed=r"\d+",


def one_of(names):
    """A pattern that matches these names only."""
    return "|".join(map(re.escape, names)) or "(?!)"


# --- inputs ---


def model_folder(wildcards):
    """The folder of a variant."""
    return variant_folder(wildcards.model, Variant.parse(wildcards.variant))


def model_manifest(wildcards):
    """The manifest of a variant's folder, which holds the hash of its weights: Snakemake compares it by content."""
    return model_folder(wildcards) / MANIFEST


def model_weights(wildcards):
    """The weights of a variant. Rules mark them as ancient: the manifest tells whether they changed."""
    return model_folder(wildcards) / "model.safetensors"


def head_manifest(wildcards):
    """The task that a model's own classification head was trained on, if the head is kept."""
    head = STUDY.models[wildcards.model].head
    return TASKS / head / MANIFEST if head else []


def harness_manifest(wildcards):
    """lm-evaluation-harness, for the tasks that it scores."""
    return "resources/harness/manifest.json" if STUDY.tasks[wildcards.task].kind == "zero-shot" else []


def pruned_variant(wildcards):
    """The variant that a job of pruning makes."""
    return Variant.parse(wildcards.pruned)


def calibration_manifest(wildcards):
    """The text of a calibrated method."""
    if pruned_variant(wildcards).is_calibrated:
        return TASKS / STUDY.calibration.task / MANIFEST
    return []


def training_text(wildcards):
    """Another task that a run trains on, instead of its own or beside it."""
    text = STUDY.training_text(wildcards.task, wildcards.recipe)
    return TASKS / text / MANIFEST if text else []


def own_text(wildcards):
    """The text of a calibrated method that prunes a fine-tuned model: what the model was trained on."""
    if pruned_variant(wildcards).is_calibrated:
        return TASKS / (STUDY.tasks[wildcards.task].train_on or wildcards.task) / MANIFEST
    return []


def run_of(wildcards):
    """The run that a job computes."""
    variant = Variant.parse(wildcards.variant)
    return Run(wildcards.model, variant, wildcards.task, wildcards.recipe, int(wildcards.seed))


def start_manifest(wildcards):
    """The manifest of the folder that a run starts from."""
    return STUDY.start_folder(run_of(wildcards)) / MANIFEST


def start_weights(wildcards):
    """The weights that a run starts from."""
    return STUDY.start_folder(run_of(wildcards)) / "model.safetensors"


def dense_run(file):
    """A file of the fine-tuned dense model, for recipes with a schedule or a teacher."""

    def path(wildcards):
        if not STUDY.recipe(wildcards.recipe).needs_dense:
            return []
        return run_of(wildcards).dense.folder / "model" / file

    return path


def found_file(key):
    """A file that the config names, relative to the working directory or to this workflow; None if it names none."""
    value = getattr(STUDY, key)
    if value is None:
        return None
    for path in (Path(value), WORKFLOW / value):
        if path.is_file():
            return path
    sys.exit(f"error: config: {key}: found {value!r}, which is no file; correct the path")


def literal(path):
    """A path as an input. One that Snakemake or a script would misread leads through a link to its folder."""
    if not contains_wildcard(str(path)) and not str(path).startswith("-"):
        return str(path)
    if contains_wildcard(path.name):
        sys.exit(f"error: {path}: Snakemake takes the braces in this file's name for a wildcard; rename the file")
    folder = path.absolute().parent
    link = Path(".snakemake/folders") / hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(folder)
    return str(link / path.name)


def named_file(key):
    """`found_file` as an input."""
    path = found_file(key)
    return literal(path) if path else []


def claims_numbers():
    """The table of an earlier study's numbers, which the file of its claims names, as an input."""
    claims = found_file("claims")
    try:
        named = read_document(claims)["source"]["numbers"] if claims else None
    except (*UNREADABLE, TypeError, LookupError, UserError):
        return []  # there is none, or the start of a run says what is wrong with the file
    return literal(claims.parent / str(named)) if named else []


def contents(*paths):
    """The sha256 of files that the config names. As inputs, Snakemake compares them only if they are newer than before."""
    return [sha256(Path(path)) for path in paths if path and Path(path).is_file()]


def everything(wildcards):
    """All results of the study. A function, so that a process that runs another job does not list them."""
    evaluated, pruned = (*CELLS.evaluations, *CELLS.runs), [cell for cell in CELLS.variants if not cell[1].is_dense]
    return [
        # Weight statistics of dense models alone: no figure and no claim reads those of pruned ones.
        *(results_folder(model, variant) / "weights.parquet" for model, variant in CELLS.variants if variant.is_dense),
        # Manifests hold the sizes of weight files.
        *(variant_folder(model, variant) / MANIFEST for model, variant in CELLS.variants),
        *(run.folder / "model" / MANIFEST for run in CELLS.runs),
        *(results_folder(model, variant) / "sparsity.csv" for model, variant in pruned),
        *(results_folder(model, variant) / "cost.json" for model, variant in CELLS.measured),
        *(cell.folder / name for cell in evaluated for name in ("metrics.json", "runtime.json")),
        *(run.folder / name for run in CELLS.runs for name in ("history.csv", "predictions.csv")),
        *(cell.folder / "predictions.csv" for cell in CELLS.evaluations if cell.task in STUDY.scores()),
    ]


# --- params ---


def settings(**values):
    """The values that a job uses, as one string: Snakemake compares what the script reads.

    A long string would be no argument of a command: it lies in a file named by its hash.
    """
    text = json.dumps(values, sort_keys=True)
    text = re.sub(r"\{(?=\s*\w)", r"\\u007b", text)  # "{name}" in a value is no wildcard; JSON reads the same text
    if len(quoted(text)) <= LONGEST:
        return text
    return f"@{stored(text)}"


def stored(text):
    """The path of a file that holds a JSON text, named by its hash."""
    path = Path(".snakemake/settings") / f"{hashlib.sha256(text.encode()).hexdigest()}.json"
    if not path.exists():
        write_text(path, text)
    return path


@functools.cache
def folder_content(kind, name):
    """A hash of the files on this machine that a model or a task is made of; "" if its source is no folder.

    Files that take long to read count by their size and time.
    """
    entry = (STUDY.models if kind == "model" else STUDY.tasks)[name]
    if entry.source.folder is None:
        return ""
    folder = Path(entry.source.folder).expanduser()
    named = [] if kind == "model" else [folder / file for file in (*entry.files.values(), "README.md")]
    content = []
    for path in named or matching(folder, (*MODEL_FILES, MANIFEST)):
        if path.is_file():
            size, time = path.stat().st_size, path.stat().st_mtime_ns
            content.append([str(path.relative_to(folder)), time if size > LARGE else sha256(path), size])
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def code(stage, modules=(), files=()):
    """The hash of the code of a stage, as a function: a process that runs one job reads the code of its stage alone."""
    return lambda wildcards: code_hash(WORKFLOW / "scripts" / f"{stage}.py", modules=tuple(modules), files=tuple(files))


def prune_code(wildcards):
    """The hash of pruning, with the modules of the method and its steps alone: others affect no variant without them."""
    return code("prune", methods.Chain(pruned_variant(wildcards).method).modules)(wildcards)


def prune_settings(wildcards):
    variant = pruned_variant(wildcards)
    chosen = STUDY.prune_settings(variant.method, variant.calibration_seed)
    return settings(method=variant.method, scope=variant.scope, sparsity=str(variant.sparsity), **chosen)


def finetune_settings(wildcards):
    return settings(**STUDY.run_settings(wildcards.task, wildcards.recipe, int(wildcards.seed)))


def evaluate_settings(wildcards):
    return settings(**STUDY.evaluate_settings(wildcards.task))


# --- resources: they shape no result, so a change makes nothing run again ---


def axes(wildcards):
    """The task, recipe and variant of a job, as far as it has them."""
    names = {"task": "task", "recipe": "recipe", "variant": "variant", "pruned": "variant"}
    return {axis: wildcards[name] for name, axis in names.items() if name in wildcards.keys()}


def runtime(stage):
    """Minutes that a job requests, from the plan: batch systems enforce them, pilots start the longest jobs first."""

    def minutes(wildcards):
        # A process that runs a single job leaves out measured minutes: it would read the results of all others.
        measured = workflow.is_main_process
        found, _ = plan.minutes(STUDY, stage, wildcards.model, measured=measured, **axes(wildcards))
        return plan.requested_minutes(found)

    return minutes


def all_cores(_):
    """Threads of a rule: all cores on this machine; elsewhere a job has a slot."""
    return (workflow.local_exec and workflow.resource_settings.cores) or 1


def megabytes(estimate, stage):
    """Megabytes that a job may take, of memory or disk, from its model and variant."""
    return lambda wildcards: estimate(STUDY, stage, wildcards.get("model", ""), **axes(wildcards))


# --- before the first job, and after the last ---


def check_before_start():
    """End a run before its first job if this environment cannot run it, or something that it needs is missing.

    Then clear what a killed driver has left in Slurm and what earlier runs have logged, and show what the study takes.
    """
    driver.record()
    if workflow.local_exec:
        os.environ.update(LLM_SPARSITY_LEASE="1")  # jobs share the GPUs of this process, whatever these are
    check_environment()
    check_named_files()
    jobs = list(workflow.dag.needrun_jobs())
    pending = [(job.name.removeprefix("download_"), *job.wildcards) for job in jobs if job.name in RULES["download"]]
    if found := list(sources.missing(STUDY, pending=pending)):
        raise UserError("\nerror: ".join(map(str, found)))
    if workflow.executor_plugin.name == "slurm":
        slurm.cancel_left_over((job.name, list(job.wildcards or [])) for job in jobs)
    for log in (log for job in jobs for log in job.log):  # a job that fails before it starts is given no old reason
        Path(log).unlink(missing_ok=True)
    if workflow.local_exec and sum(job.name in FORKED for job in jobs) > 1:
        forkserver.start()
    show_plan()


def check_environment():
    """Raise UserError if packages that run a study, or the package of its tracker, are not installed."""
    if find_spec("torch") is None or find_spec("huggingface_hub") is None:
        raise UserError(
            "this environment can plan (-n) but not run; pip install -r envs/requirements.txt, or use ./run"
        )
    if STUDY.tracker:
        from llm_sparsity.training import tracking

        tracking.require(STUDY.tracker)


def check_named_files():
    """Raise UserError if a file that the config names is wrong: the stages that read them are the last."""
    from llm_sparsity.reporting import claims, references

    if path := found_file("claims"):
        claims.load(path)
    if path := found_file("published"):
        references.read_numbers(path, references.PUBLISHED)


def show_plan():
    """Tell the line of progress how long jobs take; print what a run on a batch system takes, before it asks for nodes."""
    minutes = {}
    for job in plan.jobs(STUDY):
        for name in RULES.get(job.stage, (job.stage,)):
            minutes.setdefault(name, []).append(job.minutes)
    planned = {name: sum(each) / len(each) for name, each in minutes.items()}
    leased = bool(lease.devices()) and "gpu" not in workflow.global_resources  # more jobs may start than there are GPUs
    logger.info("", extra={"planned": planned, "queued": leased or not workflow.local_exec})
    if not workflow.local_exec:
        from llm_sparsity.study import advice

        print(plan.table(STUDY), file=sys.stderr)
        pools = getattr(workflow.executor_settings, "config", None)  # a site's Parsl configuration, beside its queues
        if pools and (queues := Path(pools).with_name("queues.csv")).is_file():
            print("", advice.advise(plan.jobs(STUDY), advice.queues(queues)), sep="\n", file=sys.stderr)


def show_summary():
    """Print what was found, below all that Snakemake still has to say; of a part of the study, nothing."""
    if any(job.name == "plot" for job in workflow.dag.jobs):
        atexit.register(print, Path(rules.plot.output.summary).read_text(encoding="utf-8"))


def show_failures():
    """Print the reason and the log of each failed job, one line each, below all that Snakemake still has to say."""
    jobs = [(" ".join([job.name, *map(str, job.wildcards or [])]), list(job.log)) for job in workflow.scheduler.failed]
    red, plain = ("\033[31m", "\033[0m") if sys.stderr.isatty() and "NO_COLOR" not in os.environ else ("", "")
    lines = "\n".join(f"{red}{line}{plain}" for line in sorted(failures.failures(jobs)))
    atexit.register(print, lines, file=sys.stderr)


# --- jobs on nodes ---

# They read the config again. Its file may have been edited since; the driver records the settings that it has read. The
# config of a module is not Snakemake's.
if workflow.is_main_process and workflow.modifier.parent_modifier is None:
    workflow.overwrite_configfiles[:] = [stored(json.dumps(config)).absolute()]


# --- locks ---

if workflow.is_main_process:
    driver.spare_others()
    driver.unlock()
    # `./run` says in one line what Snakemake says in five, with the advice to remove the locks.
    slots = workflow.resource_settings.cores or workflow.resource_settings.nodes  # nothing else than jobs needs them
    computes = slots and not workflow.output_settings.dryrun and "--unlock" not in sys.argv
    if "LLM_SPARSITY_RUN" in os.environ and computes and (holder := driver.holder()):
        sys.exit(
            f"error: {holder} computes in this folder; wait for it or stop it "
            "(if it ended unseen: the same command with --unlock)"
        )
    if any(RESULTS.glob("*/*")) and not any(Path(".snakemake/metadata").glob("*")):
        print(
            "warning: results/ came without .snakemake/, which remembers the settings and code of each result: copy that "
            "folder too, or changed settings make nothing run again",
            file=sys.stderr,
        )
    for found in sources.missing_folders(STUDY) if workflow.output_settings.dryrun else ():  # a run ends with them
        print(f"warning: {found}", file=sys.stderr)
