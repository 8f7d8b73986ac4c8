import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.study import config, plan


def refused(values: dict[str, Any]) -> str:
    """The one line that is said about a config."""
    with pytest.raises(UserError) as error:
        config.load(values)
    (line,) = str(error.value).splitlines()
    return line


@pytest.fixture
def values(root: Path) -> dict[str, Any]:
    return copy.deepcopy(yaml.safe_load((root / "config.yaml").read_text()))


@pytest.mark.parametrize(
    "study",
    ["config.yaml", "studies/embedded.yaml", "studies/one-billion.yaml", "studies/recovery.yaml", "tests/config.yaml"],
)
def test_shipped_studies_are_valid(study: str, root: Path) -> None:
    assert config.load(yaml.safe_load((root / study).read_text())).cells().variants


@pytest.mark.parametrize(
    ("given", "expected"),
    [(0, "0"), (0.0, "0"), (0.5, "0.5"), ("0.50", "0.5"), (".5", "0.5"), (1e-3, "0.001"), ("2of4", "2of4")],
)
def test_a_sparsity_has_one_spelling(given: Any, expected: str, values: dict[str, Any]) -> None:
    values["study"][0]["sparsities"] = [given]
    assert list(map(str, config.load(values).study[0].sparsities)) == [expected]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: v.update(finetun={}), "finetun: unknown key; did you mean 'finetune'?"),
        (lambda v: v.pop("name"), "name: missing; add it"),
        (lambda v: v.update(name="a/b"), "name: found 'a/b'; a name becomes a folder"),
        (lambda v: v["models"].update({256 * "m": v["models"]["gpt2"]}), "a name becomes a folder: use letters, "),
        (lambda v: v.update(study=[]), "study: found nothing; give at least one"),
        (lambda v: v["study"][0].update(models=["roberta-bse"]), "'roberta-bse', which is not defined; did you mean"),
        (lambda v: v["study"][0].update(tasks=["sst3"]), "study.0.tasks: found 'sst3'"),
        (lambda v: v["study"][0].update(methods=["magnitud"]), "did you mean 'magnitude'?"),
        (lambda v: v["study"][0].update(scopes=["linar"]), "did you mean 'linear'?"),
        (lambda v: v["study"][0].update(scopes=[[0, -1]]), "scopes.0: found [0, -1]; expected a list of layers"),
        (lambda v: v["study"][0].update(methods=["structured"]), "scopes: all holds more than matrices of layers"),
        (
            lambda v: v["study"][0].update(methods=["block"], scopes=["linear"], sparsities=["2of4"]),
            "study.0.sparsities: 2of4 is for single weights, but block removes more",
        ),
        (lambda v: v["study"][0].update(scopes=["decoder"]), "decoder, but model roberta-base is an encoder"),
        (lambda v: v["study"][0].update(sparsities=[1.0]), "study.0.sparsities.0: found 1.0; expected a fraction"),
        (lambda v: v["study"][0].update(sparsities=[-0.1]), "study.0.sparsities.0: found -0.1; expected a fraction"),
        (lambda v: v["study"][0].update(sparsities=["4of2"]), "found '4of2'; expected a fraction"),
        (lambda v: v["study"][0].update(sparsities=[True]), "study.0.sparsities: found [True]; yes, no, on and"),
        (lambda v: v["study"][0].update(sparsities=[0.5, "0.50"]), "sparsities: 0.5 is given twice; remove one"),
        (lambda v: v["study"][0].update(sparsities=[]), "study.0.sparsities: found nothing"),
        (lambda v: v["study"][0].update(recipes=["keep"]), "found 'keep', which is not defined; did you mean 'kept'"),
        (lambda v: v["study"][0].update(recipes=["gradul"]), "found 'gradul', which is not defined; did you mean"),
        (
            lambda v: v["study"][0].update(recipes=["gradual"], methods=["magnitude", "random"]),
            "gradual chooses weights while training, as the methods magnitude and uniform do, not",
        ),
        (
            lambda v: (
                v["study"][0].update(recipes=["gradual"]),
                v["models"]["gpt2"].update(gpus=2, accelerate="fsdp"),
            ),
            "study.0.recipes: gradual ranks whole tensors, but model gpt2 has accelerate: fsdp, which shards them",
        ),
        (lambda v: v["models"]["gpt2"].update(parameters=0), "models.gpt2.parameters: found 0; input should be"),
        (
            lambda v: v["study"][0].update(recipes=["gradual"], sparsities=["2of4"]),
            "study.0.recipes: gradual keeps no pattern such as 2of4; remove one of them",
        ),
        (
            lambda v: v.update(recipes={"mine": {"mask": "released", "schedule": {}}}),
            "recipes.mine: schedule: weights that it removes cannot be released; remove schedule, or use mask: kept",
        ),
        (
            lambda v: v.update(recipes={"mine": {"schedule": {"begin": 0.8}}}),
            "recipes.mine.schedule: begin: 0.8 is not before end, 0.3",
        ),
        (
            lambda v: v.update(recipes={"mine": {"distill": {"labels": 0, "logits": 0, "hidden": 0}}}),
            "recipes.mine.distill: labels, logits and hidden are all 0, so nothing is learned; raise one",
        ),
        (lambda v: v.update(recipes={"mine": {"distill": {"layers": 1}}}), "recipes.mine.distill.layers: unknown key"),
        (
            lambda v: v.update(recipes={"mine": {"start": "finetuned", "schedule": {}}}),
            "recipes.mine: schedule: removes weights of the fine-tuned dense model in any case; remove start",
        ),
        (
            lambda v: v.update(recipes={"mine": {"finetune": {"epochs": 0}}}),
            "recipes.mine: finetune.epochs: found 0, which needs start: finetuned; add it, or give at least 1",
        ),
        (
            lambda v: v["finetune"].update(epochs=0),
            "finetune.epochs: found 0 for task sst2, but model roberta-base has to be trained on it; give at least 1, "
            "or `head: sst2` in its entry if it is a classifier that was",
        ),
        (
            lambda v: v["models"]["gpt2"].update(head="sst"),
            "models.gpt2.head: found 'sst', which is not defined; did you mean 'sst2'?",
        ),
        (
            lambda v: v["study"][0].update(methods=["int8"], scopes=["linear"]),
            "int8 stores whole numbers, which are not fine-tuned, but task sst2 is; give int8 a grid with the recipe "
            "one-shot",
        ),
        (lambda v: v.update(recipes={"kept": {}}), "recipes.kept: this name is built in; choose another"),
        (lambda v: v.update(recipes={"long": {"mak": "kept"}}), "recipes.long.mak: unknown key; did you mean 'mask'?"),
        (lambda v: v.update(recipes={"long": {"finetune": {"epoch": 9}}}), "recipes.long.finetune.epoch: unknown key"),
        (lambda v: v["study"][0].update(seeds=[-1]), "study.0.seeds.0: found -1"),
        (lambda v: v["tasks"]["sst2"].update(limit={"seed": -1}), "tasks.sst2.limit.seed: found -1"),
        (lambda v: v["study"][0].update(seeds=[2**32]), "study.0.seeds.0: found 4294967296; input should be"),
        (lambda v: v.update(finetune=None), "config: finetune: found nothing; give a value, or remove it"),
        (lambda v: v["study"][0].update(scopes=[list(range(86))]), "study.0.scopes: found layers.0.1.2"),
        (lambda v: v["study"][0].update(sparsities=[1e-250]), "study.0.sparsities: found 0.0000"),
        (lambda v: v["finetune"].update(learning_rte=1), "finetune.learning_rte: unknown key; did you mean"),
        (lambda v: v["tasks"]["sst2"].update(finetune={"epoch": 1}), "tasks.sst2.finetune.epoch: unknown key"),
        (lambda v: v["tasks"]["sst2"].pop("label"), "tasks.sst2: label: missing"),
        (lambda v: v["tasks"]["sst2"].pop("files"), "tasks.sst2.files: missing"),
        (
            lambda v: v["tasks"]["sst2"]["files"].update(train=["a", "b"]),
            "tasks.sst2.files: train has a list; a split is one file, so join the shards into one",
        ),
        (lambda v: v["tasks"]["sst2"]["files"].pop("train"), "files: expected train and validation, found validation"),
        (lambda v: v["tasks"].update(model=v["tasks"]["sst2"]), "tasks.model: this name is taken"),
        (lambda v: v["models"]["gpt2"]["source"].pop("revision"), "`hub` needs `revision` too"),
        (lambda v: v["models"]["gpt2"].update(source={"folder": "x", "converted": True}), "does not go with `folder`"),
        (lambda v: v["tasks"]["sst2"].update(train_on="sst2"), "tasks.sst2: train_on: is for language-model tasks"),
        (lambda v: v["tasks"]["sst2"]["source"].update(converted=True), "source.converted: applies to models only"),
        (lambda v: v["models"]["gpt2"]["source"].update(revision="main"), "found 'main'; expected a commit"),
        (lambda v: v["models"]["gpt2"]["source"].update(folder="x"), "exactly one of hub, package or folder"),
        (lambda v: v["models"]["gpt2"]["source"].update(dtype="float16"), "`dtype` is for GGUF files"),
        (lambda v: v["models"]["gpt2"].update(architecture="decodr"), "models.gpt2.architecture: found 'decodr'"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_key_and_fix(
    change: Callable[[dict[str, Any]], Any], said: str, values: dict[str, Any]
) -> None:
    change(values)
    assert said in refused(values)


def test_every_mistake_is_told_at_once(values: dict[str, Any]) -> None:
    values["finetun"] = {}
    values["study"][0]["seeds"] = [-1]
    with pytest.raises(UserError) as error:
        config.load(values)
    assert len(str(error.value).splitlines()) == 2


def test_language_model_tasks_need_a_decoder(root: Path) -> None:
    values = yaml.safe_load((root / "studies/embedded.yaml").read_text())
    values["study"][0]["tasks"].append("editorials")
    with pytest.raises(UserError, match="editorials is a language-model task, but model minilm is an encoder"):
        config.load(values)


@pytest.fixture
def harness_task(values: dict[str, Any]) -> dict[str, Any]:
    """A study with a task of lm-evaluation-harness."""
    files = {"validation": "rte/validation-00000-of-00001.parquet"}
    source = values["tasks"]["sst2"]["source"]
    values["tasks"]["rte"] = {"kind": "zero-shot", "harness": "rte", "source": source, "files": files}
    values["study"] = [{"models": ["gpt2"], "sparsities": [0.5], "tasks": ["rte"]}]
    return values


def test_a_zero_shot_task_is_evaluated_not_trained(harness_task: dict[str, Any]) -> None:
    harness_task["tasks"]["rte"]["evaluate"] = {"batch_size": 16}
    study = config.load(harness_task)
    assert [str(cell.variant) for cell in study.cells().evaluations] == ["dense", "magnitude-all-0.5"]
    assert not study.cells().runs
    assert study.evaluate_settings("rte") == {"batch_size": 16}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda task: task.pop("harness"), "tasks.rte: harness: missing; name the task of lm-evaluation-harness"),
        (
            lambda task: task.update(kind="language-model"),
            "harness: is for zero-shot tasks, but kind is language-model",
        ),
        (lambda task: task.update(label="label"), "tasks.rte: label: the harness knows how to read and score a zero"),
        (
            lambda task: task.update(files={"train": "a"}),
            "files: expected validation or test, the one that the harness",
        ),
        (lambda task: task["files"].update(test="a"), "files: expected validation or test, the one that the harness"),
        (
            lambda task: task.update(evaluate={"max_tokens": 9}),
            "evaluate.max_tokens: does not affect a zero-shot",
        ),
        (lambda task: task.update(evaluate={"batchsize": 9}), "tasks.rte.evaluate.batchsize: unknown key; did you"),
    ],
)
def test_a_mistake_in_a_zero_shot_task(
    change: Callable[[dict[str, Any]], Any], said: str, harness_task: dict[str, Any]
) -> None:
    change(harness_task["tasks"]["rte"])
    assert said in refused(harness_task)


def test_a_zero_shot_task_needs_a_decoder(harness_task: dict[str, Any]) -> None:
    harness_task["study"][0]["models"] = ["roberta-base"]
    with pytest.raises(UserError, match="rte is a zero-shot task, but model roberta-base is an encoder"):
        config.load(harness_task)


@pytest.fixture
def text_task(values: dict[str, Any]) -> dict[str, Any]:
    """A study whose language model is trained on text."""
    values["tasks"]["text"] = {
        "kind": "language-model", "source": values["tasks"]["sst2"]["source"], "files": {"train": "a", "test": "b"},
        "finetune": {},
    }  # fmt: skip
    values["evaluate"] = {"sequence_length": 512, "max_tokens": 4096}
    values["study"] = [{"models": ["gpt2"], "sparsities": [0.5], "tasks": ["text"], "recipes": ["kept", "lora"]}]
    return values


def test_a_text_that_is_trained_on_is_measured_before_and_after(text_task: dict[str, Any]) -> None:
    study = config.load(text_task)
    assert [str(cell.variant) for cell in study.cells().evaluations] == ["dense", "magnitude-all-0.5"]
    assert [(str(run.variant), run.recipe) for run in study.cells().runs] == [
        ("dense", "kept"),
        ("magnitude-all-0.5", "kept"),
        ("magnitude-all-0.5", "lora"),
    ]
    settings = study.run_settings("text", "lora", 0)
    assert settings["evaluation"] == {"sequence_length": 512, "max_tokens": 4096}
    assert settings["lora"] == {"rank": 16, "alpha": 32.0}
    del text_task["tasks"]["text"]["finetune"]
    assert not config.load(text_task).cells().runs


def test_another_tasks_text_can_be_trained_on(text_task: dict[str, Any]) -> None:
    source = text_task["tasks"]["text"]["source"]
    text_task["tasks"]["c4"] = {"kind": "language-model", "source": source, "files": {"train": "c"}}
    text_task["tasks"]["text"] |= {"files": {"test": "b"}, "train_on": "c4"}
    text_task["calibration"] = {"task": "c4"}
    study = config.load(text_task)
    assert study.wanted_tasks() == ["text", "c4"]
    assert study.stages()["c4"] == ["evaluate"]
    text_task["tasks"]["text"] |= {"files": {"train": "a", "test": "b"}, "train_on": None}
    assert config.load(text_task).wanted_tasks() == ["text"]  # nothing is calibrated
    text_task["study"][0] |= {"methods": ["wanda"], "scopes": ["linear"]}
    assert config.load(text_task).wanted_tasks() == ["text", "c4"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda task: task["files"].pop("train"),
            "finetune: trains on the split train and evaluates on test, but files",
        ),
        (
            lambda task: task.update(label="label"),
            "tasks.text: label: is for tasks with labels, a language model's text",
        ),
        (lambda task: task.update(split={"validation": 9}), "tasks.text: split: is for tasks with labels, a language"),
        (
            lambda task: task.update(text_pair="b"),
            "tasks.text: text_pair: a language model reads no pairs; remove it",
        ),
        (lambda task: task.update(finetune={"epoch": 1}), "tasks.text.finetune.epoch: unknown key; did you mean"),
        (lambda task: task.update(train_on="txt"), "tasks.text.train_on: found 'txt', which is not defined; did you"),
        (lambda task: task.update(train_on="sst2"), "tasks.text.train_on: sst2 is no language-model task with a split"),
        (lambda task: task.update(train_on="text", finetune=None), "train_on: names a training text, but the task"),
        (lambda task: task.update(files={"train": "a"}, train_on="text"), "but files has train; add the other"),
    ],
)
def test_a_mistake_in_a_text_that_is_trained_on(
    change: Callable[[dict[str, Any]], Any], said: str, text_task: dict[str, Any]
) -> None:
    change(text_task["tasks"]["text"])
    assert said in refused(text_task)


def test_sentences_without_labels_are_of_recipes_that_ask_for_them(values: dict[str, Any]) -> None:
    source = values["tasks"]["sst2"]["source"]
    values["tasks"]["more"] = {"kind": "language-model", "source": source, "files": {"train": "c"}}
    values["tasks"]["sst2"]["unlabelled"] = "more"
    values["study"] = [values["study"][0] | {"tasks": ["sst2"], "recipes": ["gradual"]}]
    study = config.load(values)
    assert study.wanted_tasks() == ["sst2"]
    assert study.training_text("sst2", "gradual") is None
    values["study"][0]["recipes"] = ["gradual-unlabelled"]
    study = config.load(values)
    assert study.wanted_tasks() == ["sst2", "more"]
    assert study.training_text("sst2", "gradual-unlabelled") == "more"
    assert study.training_text("sst2", "kept") is None  # the dense model's recipe
    assert "unlabelled" not in study.run_settings("sst2", "gradual-unlabelled", 0)["distill"]
    more = plan.sentences(study, "sst2", "gradual-unlabelled") - plan.sentences(study, "sst2", "gradual")
    assert more == plan.UNKNOWN_ROWS


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("finetune", "epochs", True), ("finetune", "learning_rate", True), ("evaluate", "max_tokens", False),
        ("measure", "batch_sizes", [1, True]), ("prune", "seed", False),
    ],
)  # fmt: skip
def test_yes_is_no_number(section: str, key: str, value: Any, values: dict[str, Any]) -> None:
    values[section] = values.get(section, {}) | {key: value}
    assert refused(values) == (
        f"config: {section}.{key}: found {value}; yes, no, on and off are true and false in YAML; write a number, or "
        "the word in quotes"
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda v: v["finetune"].update(max_grad_norm=float("inf")),
            "config: finetune.max_grad_norm: found inf; in",
        ),
        (lambda v: v.update(prune={"min_density": 0.2}), "magnitude cannot remove 0.9, as prune.min_density 0.2 keeps"),
        (
            lambda v: v.update(evaluate={"sequence_length": 64, "max_tokens": 10}),
            "evaluate.max_tokens: found 10, but a window of task text has sequence_length 64; raise the one, or lower",
        ),
        (
            lambda v: v["tasks"]["text"]["finetune"].update(max_length=1),
            "finetune.max_length: found 1, but each token of task text is predicted from those before it; give",
        ),
        (
            lambda v: (
                v["study"][0].update(methods=["uniform+reconstruct"], scopes=["linear"]),
                v.update(calibration={"task": "text", "samples": 1}),
            ),
            "calibration.samples: found 1, but reconstruct holds a sequence out; give at least 2",
        ),
    ],
)
def test_contradictions_are_found_before_anything_is_downloaded(
    change: Callable[[dict[str, Any]], Any], said: str, text_task: dict[str, Any]
) -> None:
    text_task["study"][0]["sparsities"] = [0.5, 0.9]
    config.load(text_task)
    change(text_task)
    assert said in refused(text_task)


@pytest.mark.parametrize(
    ("method", "changing"), [("sparsegpt", "sparsegpt"), ("admm+swaps", "admm"), ("wanda+reconstruct", "reconstruct")]
)
def test_weights_that_a_method_changed_are_not_replaced(method: str, changing: str, text_task: dict[str, Any]) -> None:
    text_task["calibration"] = {"task": "text"}
    text_task["recipes"] = {"taught": {"distill": {}}, "mend": {"distill": {}, "start": "finetuned"}}
    text_task["study"][0] |= {"methods": ["wanda+swaps"], "scopes": ["linear"], "recipes": ["taught"]}
    config.load(text_task)
    text_task["study"][0] |= {"methods": [method], "recipes": ["mend", "kept"]}
    config.load(text_task)
    text_task["study"][0]["recipes"] = ["taught"]
    assert refused(text_task) == (
        "config: study.0.recipes: taught learns from the fine-tuned dense model and starts from its weights, so those "
        f"that {changing} changed are lost; add start: finetuned to taught, or give {method} another grid"
    )


def test_what_does_not_move_is_not_ranked_by_movement(values: dict[str, Any]) -> None:
    values["recipes"] = {"moving": {"schedule": {"scores": "movement"}, "distill": {}}}
    values["study"] = [values["study"][0] | {"methods": ["magnitude"], "scopes": ["linear"], "recipes": ["moving"]}]
    values["finetune"] = values["finetune"] | {"freeze_embeddings": True}
    config.load(values)
    values["study"][0]["scopes"] = ["all"]
    assert "moving ranks weights by movement, but on task" in refused(values)


def test_a_density_that_is_reached_exactly_is_no_contradiction(values: dict[str, Any]) -> None:
    values["study"] = [values["study"][0] | {"methods": ["magnitude"], "sparsities": [0.1]}]
    values["prune"] = {"min_density": 0.9}
    config.load(values)


def test_the_layers_of_a_scope_have_one_spelling(values: dict[str, Any]) -> None:
    values["study"] = [values["study"][0] | {"methods": ["magnitude"], "scopes": ["layers.1.00"]}]
    assert config.load(values).study[0].scopes == ["layers.0.1"]
    values["study"][0]["scopes"] = ["layers.1.0", [0, 1]]
    assert "study.0: scopes: layers.0.1 is given twice; remove one" in refused(values)


def test_pairs_without_labels_are_no_text(values: dict[str, Any]) -> None:
    source = values["tasks"]["sst2"]["source"]
    pairs = {"kind": "language-model", "source": source, "files": {"train": "c"}, "text_pair": "b"}
    values["tasks"]["more"] = pairs
    values["tasks"]["mrpc"]["unlabelled"] = "more"
    values["study"] = [values["study"][0] | {"tasks": ["mrpc"], "recipes": ["gradual-unlabelled"]}]
    assert config.load(values).download_settings("task", "more")["text_pair"] == "b"
    values["calibration"] = {"task": "more"}
    assert "calibration.task: more has pairs, of which a text is not made; name another task" in refused(values)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"sst2": {"unlabelled": None}},
            "study.0.recipes: gradual-unlabelled learns from unlabelled sentences, but task",
        ),
        (
            {"sst2": {"unlabelled": "mor"}},
            "tasks.sst2.unlabelled: found 'mor', which is not defined; did you mean 'more'",
        ),
        (
            {"sst2": {"unlabelled": "mrpc"}},
            "tasks.sst2.unlabelled: mrpc has pairs, but sst2 has single sentences; name",
        ),
        (
            {"mrpc": {"unlabelled": "more"}},
            "tasks.mrpc.unlabelled: more has single sentences, but mrpc has pairs; name",
        ),
        ({"more": {"text_pair": "b"}}, "tasks.sst2.unlabelled: more has pairs, but sst2 has single sentences; name"),
        ({"more": {"files": {"test": "c"}}}, "tasks.sst2.unlabelled: more has no split train; name a task that has"),
        (
            {"more": {"unlabelled": "more"}},
            "tasks.more: unlabelled: is for tasks with labels; remove it, or use train_on",
        ),
    ],
)
def test_a_mistake_in_sentences_without_labels(
    changes: dict[str, dict[str, Any]], said: str, values: dict[str, Any]
) -> None:
    source = values["tasks"]["sst2"]["source"]
    values["tasks"]["more"] = {"kind": "language-model", "source": source, "files": {"train": "c"}}
    values["tasks"]["sst2"]["unlabelled"] = "more"
    values["study"] = [values["study"][0] | {"tasks": ["sst2"], "recipes": ["gradual-unlabelled"]}]
    config.load(values)
    for name, change in changes.items():
        values["tasks"][name] |= change
    assert said in refused(values)


@pytest.mark.parametrize("other", [{"mask": "released"}, {"schedule": {}}])
def test_low_rank_updates_leave_the_weights_as_they_were_pruned(other: dict[str, Any], values: dict[str, Any]) -> None:
    values["recipes"] = {"mine": {"lora": {}, **other}}
    with pytest.raises(UserError, match=r"recipes\.mine: lora: keeps the weights as .* excludes .*; remove one"):
        config.load(values)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"mask": "released"}, "recipes.mine: mask: released: without effect, as finetune.epochs is 0; remove one"),
        ({"distill": {}}, "recipes.mine: distill: without effect, as finetune.epochs is 0; remove one of them"),
        ({"lora": {}}, "recipes.mine: lora: without effect, as finetune.epochs is 0; remove one of them"),
    ],
)
def test_a_recipe_without_training_has_no_setting_of_it(
    recipe: dict[str, Any], said: str, values: dict[str, Any]
) -> None:
    values["recipes"] = {"mine": {"start": "finetuned", "finetune": {"epochs": 0}, **recipe}}
    assert said in refused(values)


def test_sentences_without_labels_need_a_loss(values: dict[str, Any]) -> None:
    values["recipes"] = {"mine": {"distill": {"unlabelled": True, "logits": 0, "hidden": 0}}}
    assert "unlabelled: nothing is learned from it, as logits and hidden are 0; raise one" in refused(values)


def test_frozen_zeros_cannot_be_released(values: dict[str, Any]) -> None:
    values["study"] = [values["study"][0] | {"scopes": ["embeddings"], "recipes": ["released"]}]
    config.load(values)
    values["finetune"]["freeze_embeddings"] = True
    assert "study.0.recipes: released releases zeros, but on task sst2 freeze_embeddings keeps those of" in refused(
        values
    )


@pytest.mark.parametrize("method", ["structured", "block", "magnitude+int8"])
def test_every_method_keeps_the_least_density(method: str, values: dict[str, Any]) -> None:
    values["prune"] = {"min_density": 0.5}
    grid = {"methods": [method], "scopes": ["linear"], "sparsities": [0.5], "recipes": ["kept"], "tasks": []}
    values["study"] = [values["study"][0] | grid]
    config.load(values)
    values["study"][0]["sparsities"] = [0.9]
    assert f"{method} cannot remove 0.9, as prune.min_density 0.5 keeps this fraction" in refused(values)


def test_a_batch_size_is_measured_once(values: dict[str, Any]) -> None:
    values["measure"] = {"batch_sizes": [1, 1]}
    assert "measure: batch_sizes: 1 is given twice; remove one" in refused(values)


def test_a_name_is_no_number_of_several_spellings(values: dict[str, Any]) -> None:
    values["name"] = 1.10
    assert "name: found 1.1; a number has no one spelling; write the name in quotes" in refused(values)


def test_a_task_overrides_the_defaults_of_finetune(values: dict[str, Any]) -> None:
    values["tasks"]["mrpc"]["finetune"] = {"epochs": 5}
    study = config.load(values)
    assert study.finetune_settings("mrpc", "kept")["epochs"] == 5
    assert study.finetune_settings("sst2", "kept")["epochs"] == 3


def test_a_recipe_overrides_the_task(values: dict[str, Any]) -> None:
    values["tasks"]["mrpc"]["finetune"] = {"epochs": 5, "learning_rate": 1e-4}
    values["recipes"] = {"long": {"mask": "released", "finetune": {"epochs": 9}}}
    chosen = config.load(values).finetune_settings("mrpc", "long")
    assert (chosen["epochs"], chosen["learning_rate"], chosen["mask"]) == (9, 1e-4, "released")


@pytest.fixture
def classifiers(values: dict[str, Any]) -> dict[str, Any]:
    """A study of classifiers that are fine-tuned already."""
    values["tasks"]["sst2"]["finetune"] = {"epochs": 0}
    for model in values["models"].values():
        model["head"] = "sst2"
    values["study"] = [
        {"models": list(values["models"]), "methods": ["magnitude", "int8"], "scopes": ["linear"], "sparsities": [0.5],
         "tasks": ["sst2"]}
    ]  # fmt: skip
    values["recipes"] = {"mend": {"finetune": {"epochs": 3}}}
    return values


def test_classifiers_are_scored_without_training(classifiers: dict[str, Any]) -> None:
    study = config.load(classifiers)
    assert {(str(run.variant), run.recipe) for run in study.cells().runs} == {
        ("dense", "kept"), ("magnitude-linear-0.5", "kept"), ("int8-linear-0", "kept")
    }  # fmt: skip
    assert study.run_settings("sst2", "kept", 0)["epochs"] == 0
    assert all("evaluate" not in stages for stages in study.stages().values())
    assert len(plan.jobs(study)) == 3 * (1 + 1 + 2 + 3 + 3) + 1  # download, weights, prune, measure, finetune; the task


def test_the_example_of_the_how_to_needs_a_task_alone(values: dict[str, Any], root: Path) -> None:
    (example,) = (root / "docs/howto.md").read_text().split("```yaml\n")[1:]
    given = yaml.safe_load(example.split("```")[0])
    study = config.load({"name": "mine", "tasks": {"sst2": values["tasks"]["sst2"]}, **given})
    assert len(study.cells().runs) == 1 + 2 + 1


def test_a_recipe_with_epochs_of_its_own_trains_classifiers(classifiers: dict[str, Any]) -> None:
    classifiers["study"][0] |= {"methods": ["magnitude"], "recipes": ["kept", "mend", "one-shot"], "seeds": [0, 1]}
    study = config.load(classifiers)
    runs = {run.recipe: study.run_settings("sst2", run.recipe, 0)["epochs"] for run in study.cells().runs}
    assert runs == {"kept": 0, "mend": 3, "one-shot": 0}
    starts = {run.recipe: str(study.start_folder(run)) for run in study.cells().runs if not run.variant.is_dense}
    assert starts["kept"] == starts["mend"] != starts["one-shot"]


def test_the_task_of_a_head_is_downloaded(classifiers: dict[str, Any]) -> None:
    classifiers["study"][0] |= {"tasks": [], "methods": ["magnitude"]}
    assert config.load(classifiers).wanted_tasks() == ["sst2"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda v: v["study"][0].update(recipes=["released"], methods=["magnitude"]),
            "finetune.epochs: found 0 for task sst2, but recipe released trains; use one with epochs of its own",
        ),
        (lambda v: v["study"][0].update(seeds=[0, 1]), "study.0.seeds: nothing is trained, so that all seeds give one"),
        (lambda v: v["models"]["gpt2"].pop("head"), "but model gpt2 has to be trained on it; give at least 1"),
        (lambda v: v["models"]["gpt2"].update(head="mrpc"), "but model gpt2 has to be trained on it; give at least 1"),
        (
            lambda v: (
                v["tasks"].update(text={"kind": "language-model", "source": {"folder": "x"}, "files": {"test": "a"}}),
                v["models"]["gpt2"].update(head="text"),
            ),
            "models.gpt2.head: text is a language-model task, which has no classification head; name the",
        ),
    ],
)  # fmt: skip
def test_what_does_not_go_with_classifiers(
    change: Callable[[dict[str, Any]], Any], said: str, classifiers: dict[str, Any]
) -> None:
    change(classifiers)
    assert said in refused(classifiers)


def test_a_list_of_layers_has_one_spelling(values: dict[str, Any]) -> None:
    values["study"][0]["scopes"] = ["linear", [3, 0], "layers.2"]
    assert config.load(values).study[0].scopes == ["linear", "layers.0.3", "layers.2"]


@pytest.fixture
def calibrated(values: dict[str, Any]) -> dict[str, Any]:
    """A study of SparseGPT, with a text to calibrate and to measure on."""
    source = {"folder": "texts"}
    values["tasks"]["text"] = {"kind": "language-model", "source": source, "files": {"train": "a.txt", "test": "b.txt"}}
    values["calibration"] = {"task": "text", "samples": 8}
    values["study"] = [
        {"models": ["gpt2"], "methods": ["magnitude", "sparsegpt"], "scopes": ["linear"], "sparsities": [0.5],
         "tasks": ["text"]},
    ]  # fmt: skip
    return values


def test_only_calibrated_methods_use_the_calibration(calibrated: dict[str, Any]) -> None:
    study = config.load(calibrated)
    assert set(config.CALIBRATED) >= {"wanda", "sparsegpt"}
    assert {"magnitude", "uniform", "random", "block", "structured"}.isdisjoint(config.CALIBRATED)
    assert study.prune_settings("magnitude") == {"seed": 0, "min_density": 0.0}
    drawn = {"samples": 8, "sequence_length": 2048, "seed": 0}
    assert study.prune_settings("sparsegpt") == {"min_density": 0.0, "layerwise": "uniform", "calibration": drawn}


def test_fine_tuned_models_are_calibrated_by_their_own_sentences(calibrated: dict[str, Any]) -> None:
    calibrated["calibration"] = {"samples": 8}
    grid = {"methods": ["wanda+swaps"], "tasks": ["sst2"], "recipes": ["one-shot"], "measure": False}
    calibrated["study"] = [calibrated["study"][0] | grid]
    assert config.load(calibrated).wanted_tasks() == ["sst2"]
    calibrated["study"][0]["recipes"] = ["kept", "one-shot"]
    assert "calibration.task: missing, but wanda+swaps prunes gpt2" in refused(calibrated)


def test_each_calibration_seed_is_a_variant(calibrated: dict[str, Any]) -> None:
    calibrated["calibration"]["seeds"] = [0, 5]
    study = config.load(calibrated)
    names = [str(variant) for _, variant in study.cells().variants]
    assert names == ["dense", "magnitude-linear-0.5", "sparsegpt-linear-0.5", "sparsegpt-linear-0.5-5"]
    assert study.prune_settings("sparsegpt", 5)["calibration"]["seed"] == 5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: v.pop("calibration"), "study.0.methods: sparsegpt needs calibration text; add calibration"),
        (
            lambda v: v["calibration"].pop("task"),
            "calibration.task: missing, but sparsegpt prunes gpt2 before it is fine-tuned, too; name a language-model",
        ),
        (lambda v: v["calibration"].update(task="texts"), "calibration.task: found 'texts', which is not defined; did"),
        (
            lambda v: v["calibration"].update(task="sst2"),
            "calibration.task: sst2 is no language-model task with a split",
        ),
        (lambda v: v["tasks"]["text"]["files"].pop("train"), "text is no language-model task with a split train"),
        (lambda v: v["tasks"]["text"]["files"].pop("test"), "study.0.tasks: text has no split test to measure"),
        (lambda v: v["tasks"]["text"]["files"].update(dev="c"), "has test, to measure perplexity on, or train, to cal"),
        (lambda v: v["calibration"].update(sample=8), "calibration.sample: unknown key; did you mean 'samples'?"),
        (lambda v: v["calibration"].update(samples=0), "calibration.samples: found 0; input should be greater than 0"),
        (lambda v: v["calibration"].update(seed=1), "calibration.seed: unknown key; did you mean 'seeds'?"),
        (lambda v: v["calibration"].update(seeds=[1, 1]), "calibration: seeds: 1 is given twice; remove one"),
        (
            lambda v: v["study"][0].update(scopes=["all"]),
            "scopes: all holds more than matrices of layers, which sparse",
        ),
        (
            lambda v: v.update(prune={"layerwise": "outliers"}),
            "prune.layerwise: found 'outliers'; input should be 'uniform'",
        ),
        (
            lambda v: (v.update(prune={"layerwise": "owl"}), v["study"][0].update(sparsities=["2of4"])),
            "study.0.sparsities: 2of4 is equal in all layers, but prune.layerwise is owl; remove one",
        ),
    ],
)
def test_a_mistake_in_the_calibration(
    change: Callable[[dict[str, Any]], Any], said: str, calibrated: dict[str, Any]
) -> None:
    change(calibrated)
    assert said in refused(calibrated)
