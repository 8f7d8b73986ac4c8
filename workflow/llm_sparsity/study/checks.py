"""What the sections of a config say together: names that are defined, methods, models, tasks and recipes that fit.

Each fault is a ValueError of one line, with the key, the value found and the fix.
"""

import itertools
from typing import TYPE_CHECKING

from llm_sparsity.study.fields import refuse_unknown
from llm_sparsity.study.methods import CALIBRATED, SCHEDULED, SINGLE, UPDATING, Chain
from llm_sparsity.study.settings import RECIPES

if TYPE_CHECKING:
    from llm_sparsity.study.config import Config, Grid

LONGEST = 200  # characters of a variant's name; file systems allow a folder 255, and its seed and suffixes follow
TAKEN = {"model", "cost.json", "sizes.json", "sparsity.csv", "weights.parquet"}  # beside the tasks in a results folder


def check(study: "Config") -> None:
    """Check a config whose sections are valid, each by itself.

    Raises:
        ValueError: see the module.
    """
    for name in sorted(TAKEN & study.tasks.keys()):
        raise ValueError(f"tasks.{name}: this name is taken by a file or folder of the results; choose another")
    for name in study.recipes:
        if name in RECIPES:
            raise ValueError(f"recipes.{name}: this name is built in; choose another")
    _check_heads(study)
    for number, grid in enumerate(study.study):
        where = f"study.{number}"
        refuse_unknown(f"{where}.models", grid.models, study.models)
        refuse_unknown(f"{where}.tasks", grid.tasks, study.tasks)
        refuse_unknown(f"{where}.recipes", grid.recipes, [*RECIPES, *study.recipes])
        _check_methods(study, where, grid)
        _check_folders(where, grid)
        _check_recipes(study, where, grid)
        _check_starts(study, where, grid)
        _check_unlabelled(study, where, grid)
        _check_models(study, where, grid)
    _check_texts(study)
    for task in study.tasks:
        evaluated = study.evaluate_settings(task)
        is_text, most = study.tasks[task].kind == "language-model", evaluated.get("max_tokens")
        if is_text and most and most < evaluated["sequence_length"]:
            raise ValueError(
                f"evaluate.max_tokens: found {most}, but a window of task {task} has sequence_length "
                f"{evaluated['sequence_length']}; raise the one, or lower the other"
            )
        for recipe in [*RECIPES, *study.recipes]:
            settings = study.finetune_settings(task, recipe)
            if is_text and settings["max_length"] < 2:
                raise ValueError(
                    f"finetune.max_length: found {settings['max_length']}, but each token of task {task} is "
                    "predicted from those before it; give at least 2"
                )
    for number, grid in enumerate(study.study):
        _check_untrained(study, f"study.{number}", grid)
    if study.calibration is not None and study.calibration.task is None:
        for model, variant in study.cells().variants:
            if variant.is_calibrated:
                raise ValueError(
                    f"calibration.task: missing, but {variant.method} prunes {model} before it is fine-tuned, too; "
                    "name a language-model task with a split train, or give it the recipe one-shot and measure: false"
                )


def _check_methods(study: "Config", where: str, grid: "Grid") -> None:
    """Refuse unknown methods, and sparsities, scopes and tasks that a method does not go with."""
    patterns = [sparsity for sparsity in grid.sparsities if sparsity.is_pattern]
    for method in grid.methods:
        try:
            chain = Chain(method)
        except ValueError as error:
            raise ValueError(f"{where}.methods: {error}") from None
        if patterns and chain.method and chain.method not in SINGLE:
            raise ValueError(f"{where}.sparsities: {patterns[0]} is for single weights, but {method} removes more")
        if patterns and chain.method in CALIBRATED and study.prune.layerwise == "owl":
            raise ValueError(
                f"{where}.sparsities: {patterns[0]} is equal in all layers, but prune.layerwise is owl; remove one"
            )
        if "reconstruct" in chain.steps and study.calibration and study.calibration.samples < 2:
            raise ValueError("calibration.samples: found 1, but reconstruct holds a sequence out; give at least 2")
        kept = study.prune.min_density
        too_many = [each for each in grid.sparsities if not each.fits(kept)]
        if chain.method and too_many:
            raise ValueError(
                f"{where}.sparsities: {method} cannot remove {too_many[0]}, as prune.min_density {kept} keeps this "
                "fraction of every tensor; lower one of them"
            )
        if chain.is_calibrated and study.calibration is None:
            raise ValueError(f"{where}.methods: {method} needs calibration text; add calibration: {{task: ...}}")
        of_layers = chain.is_calibrated or chain.parts[0] not in SINGLE
        if of_layers and (scopes := {"all", "embeddings"} & set(grid.scopes)):
            raise ValueError(
                f"{where}.scopes: {min(scopes)} holds more than matrices of layers, which {method} needs; "
                "choose linear, attention, mlp, encoder, decoder or a list of layers"
            )
        trained = study.trained_tasks(grid)
        if chain.is_quantised and trained and not study.untrained(grid):
            raise ValueError(
                f"{where}.methods: {method} stores whole numbers, which are not fine-tuned, but task {trained[0]} "
                f"is; give {method} a grid with the recipe one-shot, or without the task"
            )


def _check_folders(where: str, grid: "Grid") -> None:
    """Refuse variants whose names are too long for a folder."""
    found = {key: max(map(str, getattr(grid, key)), key=len) for key in ("methods", "scopes", "sparsities")}
    if (length := len("-".join(found.values()))) > LONGEST:
        key = max(found, key=lambda key: len(found[key]))
        raise ValueError(
            f"{where}.{key}: found {found[key][:40]}..., but a variant's name becomes a folder: {length} characters, "
            f"{LONGEST} at most; give fewer layers or digits, or a word such as linear"
        )


def _check_heads(study: "Config") -> None:
    """Refuse heads of tasks that do not exist, or have no labels."""
    for name, model in study.models.items():
        if model.head is not None:
            refuse_unknown(f"models.{name}.head", [model.head], study.tasks)
            if not (task := study.tasks[model.head]).has_labels:
                raise ValueError(
                    f"models.{name}.head: {model.head} is a {task.kind} task, which has no classification head; name "
                    "the classification or regression task that the model was fine-tuned on"
                )


def _check_untrained(study: "Config", where: str, grid: "Grid") -> None:
    """Refuse runs without epochs that need some: of a recipe that trains, or of a model without a trained head."""
    trained = study.trained_tasks(grid)
    pairs = list(itertools.product(trained, dict.fromkeys(["kept", *grid.recipes])))  # `kept`: the dense model's
    for task, recipe in pairs:
        if study.trains(task, recipe) or not study.recipe(recipe).trains:
            continue
        if headless := [model for model in grid.models if study.models[model].head != task]:
            raise ValueError(
                f"finetune.epochs: found 0 for task {task}, but model {headless[0]} has to be trained on it; give at "
                f"least 1, or `head: {task}` in its entry if it is a classifier that was"
            )
        if recipe != "kept":
            raise ValueError(
                f"finetune.epochs: found 0 for task {task}, but recipe {recipe} trains; use one with epochs of its "
                "own, such as finetune: {epochs: 3} in its entry of recipes"
            )
    if len(grid.seeds) > 1 and pairs and not any(study.trains(*pair) for pair in pairs):
        raise ValueError(f"{where}.seeds: nothing is trained, so that all seeds give one result; give one seed")


def _check_models(study: "Config", where: str, grid: "Grid") -> None:
    """Refuse scopes and tasks that a model's architecture does not have."""
    for model in grid.models:
        architecture = study.models[model].architecture
        for scope in {"encoder", "decoder"} & set(grid.scopes):
            if scope not in architecture.split("-"):
                raise ValueError(f"{where}.scopes: {scope}, but model {model} is an {architecture}; remove one")
        for name in grid.tasks:
            task = study.tasks[name]
            if task.kind == "language-model" and "test" not in task.files:
                raise ValueError(f"{where}.tasks: {name} has no split test to measure perplexity on; add it")
            if not task.has_labels and architecture != "decoder":
                raise ValueError(
                    f"{where}.tasks: {name} is a {task.kind} task, but model {model} is an {architecture}; "
                    "give decoders a grid of their own"
                )


def _check_unlabelled(study: "Config", where: str, grid: "Grid") -> None:
    """Refuse a recipe that learns from unlabelled sentences on a task that names none."""
    for recipe, task in itertools.product(grid.recipes, study.trained_tasks(grid)):
        distill = study.recipe(recipe).distill
        if distill and distill.unlabelled and not study.tasks[task].unlabelled:
            raise ValueError(
                f"{where}.recipes: {recipe} learns from unlabelled sentences, but task {task} names none; add "
                "`unlabelled: TASK` to its entry, or give it another recipe"
            )


def _check_recipes(study: "Config", where: str, grid: "Grid") -> None:
    """Refuse zeros that cannot grow back, and a schedule that cannot choose the weights, or not as the method does."""
    for name in grid.recipes:
        frozen = [
            task for task in study.trained_tasks(grid) if study.finetune_settings(task, name)["freeze_embeddings"]
        ]
        if study.recipe(name).mask == "released" and frozen and "embeddings" in grid.scopes:
            raise ValueError(
                f"{where}.recipes: {name} releases zeros, but on task {frozen[0]} freeze_embeddings keeps those of "
                "scope embeddings; remove it, or choose another scope"
            )
        if (schedule := study.recipe(name).schedule) is None:
            continue
        if schedule.scores == "movement" and frozen and (scopes := {"all", "embeddings"} & set(grid.scopes)):
            raise ValueError(
                f"{where}.recipes: {name} ranks weights by movement, but on task {frozen[0]} freeze_embeddings keeps "
                f"those of scope {min(scopes)} from moving; remove it, or choose the scope linear"
            )
        for method in grid.methods:
            if method not in SCHEDULED and method != "structured":  # structured models are fine-tuned as `kept`
                raise ValueError(
                    f"{where}.recipes: {name} chooses weights while training, as the methods "
                    f"{' and '.join(SCHEDULED)} do, not {method}; give {method} a grid of its own"
                )
        for model in grid.models:
            if study.models[model].accelerate == "fsdp" and study.models[model].gpus > 1:
                raise ValueError(
                    f"{where}.recipes: {name} ranks whole tensors, but model {model} has accelerate: fsdp, which "
                    "shards them; use node, or give it a grid of its own"
                )
        if patterns := [sparsity for sparsity in grid.sparsities if sparsity.is_pattern]:
            raise ValueError(f"{where}.recipes: {name} keeps no pattern such as {patterns[0]}; remove one of them")


def _check_starts(study: "Config", where: str, grid: "Grid") -> None:
    """Refuse a recipe that starts from the dense model's weights after a method that changes those it keeps."""
    for recipe, method in itertools.product(grid.recipes, grid.methods):
        settings = study.recipe(recipe)
        changing = [part for part in Chain(method).parts if part in UPDATING]
        if changing and settings.distill and settings.start == "pretrained":
            raise ValueError(
                f"{where}.recipes: {recipe} learns from the fine-tuned dense model and starts from its weights, so "
                f"those that {changing[0]} changed are lost; add start: finetuned to {recipe}, or give {method} "
                "another grid"
            )


def _check_texts(study: "Config") -> None:
    """Refuse tasks that are named as a text but have none to train on, or pairs for sentences."""
    texts = {f"tasks.{name}.train_on": task.train_on for name, task in study.tasks.items() if task.train_on}
    if study.calibration is not None and study.calibration.task:
        texts["calibration.task"] = study.calibration.task
    for key, name in texts.items():
        refuse_unknown(key, [name], study.tasks)
        if study.tasks[name].kind != "language-model" or "train" not in study.tasks[name].files:
            raise ValueError(f"{key}: {name} is no language-model task with a split train; name one that is")
        if study.tasks[name].text_pair:
            raise ValueError(f"{key}: {name} has pairs, of which a text is not made; name another task")
    for task, entry in study.tasks.items():
        if entry.unlabelled:
            key, other = f"tasks.{task}.unlabelled", entry.unlabelled
            refuse_unknown(key, [other], study.tasks)
            if "train" not in study.tasks[other].files:
                raise ValueError(f"{key}: {other} has no split train; name a task that has")
            ours, theirs = (bool(each.text_pair or each.pairs) for each in (entry, study.tasks[other]))
            if ours != theirs:
                kinds = ["single sentences", "pairs"]
                raise ValueError(f"{key}: {other} has {kinds[theirs]}, but {task} has {kinds[ours]}; name another task")
