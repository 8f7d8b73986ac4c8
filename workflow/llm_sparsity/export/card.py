"""The model card: what the hub reads as front matter, and what a reader wants to know before using the model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import yaml
from huggingface_hub import ModelCard

import llm_sparsity
from llm_sparsity.export.cell import Cell
from llm_sparsity.export.check import Checked
from llm_sparsity.export.density import Density, share_left
from llm_sparsity.export.front_matter import PIPELINES, front_matter, licence_of
from llm_sparsity.export.scores import Score
from llm_sparsity.models.classes import auto_class
from llm_sparsity.reporting.wording import scope_name, shown
from llm_sparsity.storage.container import is_sparse, weight_files
from llm_sparsity.study.methods import NOTES, Chain
from llm_sparsity.study.settings import Finetune
from llm_sparsity.study.sparsity import Sparsity

TEMPLATE = Path(__file__).with_name("card.md.jinja")


@dataclass(frozen=True)
class Exported:
    """What a card describes.

    name: of the folder.
    cell: that was exported.
    model_class: name of the transformers class.
    dtype: of the weights.
    bytes: of the weight files.
    densities: of the tensors.
    scores: of the cell.
    checked: None if the export was not checked.
    commit: of this program; None if it is not known.
    """

    name: str
    cell: Cell
    model_class: str
    dtype: str
    bytes: int
    densities: Sequence[Density]
    scores: Sequence[Score]
    checked: Checked | None
    commit: str | None

    @property
    def pruned(self) -> dict[str, Any] | None:
        """What the manifest says about removed or quantised weights; None for a dense model."""
        return self.cell.facts.get("pruned")

    @property
    def quantised(self) -> str | None:
        """The step whose codes were written as values, such as "int8"; None if there was none."""
        method = (self.pruned or {}).get("method")
        return str(Chain(method).parts[-1]) if method and Chain(method).is_quantised else None


def model_card(exported: Exported) -> str:
    """The text of a model card, front matter included."""
    cell = exported.cell
    loaded_by = auto_class(cell.folder.model_config, exported.model_class).__name__
    pipeline = PIPELINES.get(loaded_by, "feature-extraction")
    seeds = max((len(score.seeds) for score in exported.scores), default=0)
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    text: str = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        card_data=front_matter(cell, pipeline, exported.scores).to_yaml(),
        title=cell.name,
        summary=_summary(exported),
        use=_use(exported.name, pipeline, loaded_by),
        pruned=_pruned(exported.pruned, exported.densities),
        finetuned=cell.task is not None and not _is_untrained(exported),
        sizes=_sizes(exported),
        stored=stored_note(exported),
        scores=[_score_row(score) for score in exported.scores],
        seeded=seeds if seeds > 1 else None,
        comparison=_comparison(cell),
        measured=_measured(exported.scores),
        config=_config(cell, exported.scores),
        reproduce=_reproduce(exported),
        checked=checked_note(exported.checked),
        licence=_licence_note(cell),
    )
    ModelCard(text)  # parses the front matter as the hub does, model-index included
    return text.strip() + "\n"


def _licence_note(cell: Cell) -> str:
    licence, name = licence_of(cell)
    if licence is None:
        return "Unknown: the source of the base model states none. Ask its authors before you pass this model on."
    files = sorted(path.name for path in cell.folder.path.glob("LICENSE*"))
    text = f"That of the base model, as its source states it: {name or licence}."
    return f"{text} Its text is in {', '.join(files)}." if files else text


def _summary(exported: Exported) -> str:
    cell = exported.cell
    source = cell.facts.get("source") or {}
    base = _source_name(cell)
    pruned = cell.facts.get("pruned")
    done = [f"This is {_link(source, base)}{f' {_removed(pruned)}' if pruned else ''}"]
    if _is_untrained(exported):
        done.append(f", with the classification head for {cell.task} that it came with, not trained any further")
    elif cell.task:
        how = f" by the recipe `{cell.recipe}`, seed {cell.seed}" if cell.recipe else f", seed {cell.seed}"
        order = ", fine-tuned" if cell.recipe else ", after it was fine-tuned"
        done.append(f"{order} on {cell.task}{how}")
    return f"{''.join(done)}. Made with llm-sparsity {llm_sparsity.__version__}."


def _own_head(cell: Cell) -> str | None:
    """The task of the classification head that the base model came with; None if it came with none that is kept."""
    return ((cell.dense or {}).get("task") or {}).get("name")


def _is_untrained(exported: Exported) -> bool:
    """Whether a run has left the weights of a model as they came, or were pruned."""
    settings = exported.scores[0].settings if exported.cell.recipe and exported.scores else {}
    return settings.get("epochs") == 0 and _own_head(exported.cell) == exported.cell.task


def _removed(pruned: Mapping[str, Any]) -> str:
    chain, sparsity = Chain(pruned["method"]), Sparsity(pruned["sparsity"])
    scope = scope_name(pruned["scope"])
    if sparsity.is_dense:
        return f"with the weights of `{scope}` quantised by `{chain}`"
    return f"with {sparsity.label} of the weights of `{scope}` removed by `{chain}`"


def _source_name(cell: Cell) -> str:
    """The base model, without folders of this machine."""
    source = cell.facts.get("source") or {}
    return str(source.get("hub") or source.get("package") or Path(source.get("folder", cell.model)).name)


def _link(source: Mapping[str, Any], name: str) -> str:
    return f"[{name}](https://huggingface.co/{name})" if "hub" in source else name


def _use(name: str, pipeline: str, loaded_by: str) -> str:
    if pipeline == "feature-extraction":
        return (
            "from transformers import AutoModel, AutoTokenizer\n\n"
            f'tokenizer, model = (each.from_pretrained("{name}") for each in (AutoTokenizer, AutoModel))\n'
            'states = model(**tokenizer("A sentence.", return_tensors="pt")).last_hidden_state'
        )
    if loaded_by == "AutoModelForSeq2SeqLM":
        return f'from transformers import {loaded_by}\n\nmodel = {loaded_by}.from_pretrained("{name}")'
    if pipeline == "fill-mask":
        return (
            f'from transformers import pipeline\n\nfill = pipeline("fill-mask", "{name}")\n'
            'print(fill(f"Paris is the {fill.tokenizer.mask_token} of France."))'
        )
    return f'from transformers import pipeline\n\nprint(pipeline("{pipeline}", "{name}")("The film is a delight."))'


def _pruned(pruned: Mapping[str, Any] | None, rows: Sequence[Density]) -> list[tuple[str, str]]:
    if not pruned:
        return []
    chain, sparsity = Chain(pruned["method"]), Sparsity(pruned["sparsity"])
    zero = f"{100 * pruned['measured_sparsity']:.4g} % of its weights are zero or gone"
    calibration = pruned.get("calibration") or {}
    found = [
        ("scope", f"`{scope_name(pruned['scope'])}`, {pruned['size']:,} weights"),
        ("sparsity", f"{zero}, after rounding" if sparsity.is_dense else f"{sparsity.label} asked for; {zero}"),
        ("all layers, embeddings and norms", f"{100 * share_left(rows):.4g} % of the weights are left"),
        *((f"`{part}`", NOTES[part]) for part in chain.parts),
        ("kept in every tensor", f"at least {100 * pruned['min_density']:g} %" if pruned.get("min_density") else ""),
        ("calibration", ", ".join(f"{key} {value}" for key, value in calibration.items())),
    ]
    return [(name, text) for name, text in found if text]


def _sizes(exported: Exported) -> list[tuple[str, int]]:
    cell, dense = exported.cell, exported.cell.dense
    weights = (name for name in (dense or {}).get("files", {}) if name.endswith(".safetensors"))
    sizes = [("dense model", sum(dense["files"][name]["bytes"] for name in weights) if dense else 0)]
    if is_sparse(cell.folder.path):
        stored = sum(path.stat().st_size for path in weight_files(cell.folder.path))
        sizes.append(("this model in llm-sparsity's container, which stores no zeros", stored))
    return [(name, size) for name, size in [*sizes, ("this folder's weights", exported.bytes)] if size]


def stored_note(exported: Exported) -> str:
    """How the weights are stored here, for the card and the terminal."""
    text = f"The weights are plain safetensors in {exported.dtype}, which store zeros like any other number."
    if exported.quantised:
        text += (
            f" The codes and scales of {exported.quantised} are written as their products, dequantised: the values are "
            "those that were measured, the bytes are not."
        )
    return text


def _comparison(cell: Cell) -> str:
    """What the columns of the scores are."""
    trained = "fine-tuned by the recipe `kept` and " if cell.recipe and _own_head(cell) != cell.task else ""
    return (
        "After ±: half of a 95 % interval, over the examples of the split for this model (where the metric has one), "
        f"over seeds elsewhere. Dense is the same model with nothing removed, {trained}measured in the same way."
    )


def _score_row(score: Score) -> dict[str, Any]:
    return {
        "task": score.task,
        "split": score.split,
        "examples": score.examples,
        "unit": score.unit,
        "metric": score.metric,
        "own": _about(score.metric, score.value, score.margin),
        "seeds": _about(score.metric, *score.over_seeds) if len(score.seeds) > 1 else "",
        "dense": _about(score.metric, *score.of_dense) if score.dense else "not measured",
    }


def _about(metric: str, value: float, margin: float) -> str:
    return shown(metric, value) if math.isnan(margin) else f"{shown(metric, value)} ± {shown(metric, margin)}"


def _measured(scores: Sequence[Score]) -> str:
    """The settings of the evaluations without training."""
    settings = {score.task: score.settings for score in scores if not score.seeds and score.settings}
    return "\n".join(f"* {task}: {', '.join(f'{k} {v}' for k, v in each.items())}" for task, each in settings.items())


def _config(cell: Cell, scores: Sequence[Score]) -> str:
    """The part of a study's config that is this cell, as YAML; "" if the source of the model is not known."""
    if not cell.facts.get("source"):
        return ""
    facts, pruned = cell.facts, cell.facts.get("pruned") or {}
    source = {key: Path(value).name if key == "folder" else value for key, value in facts["source"].items()}
    grid: dict[str, Any] = {"models": [cell.model]}
    if pruned:
        sparsity = Sparsity(pruned["sparsity"])
        grid |= {"methods": [pruned["method"]], "scopes": [pruned["scope"]]}
        grid |= {"sparsities": [str(sparsity) if sparsity.is_pattern else sparsity.fraction or 0]}
    if cell.task:
        grid |= {"tasks": [cell.task], "recipes": [cell.recipe or "kept"], "seeds": [cell.seed]}
    model = {"architecture": facts.get("architecture"), "source": source}
    if head := _own_head(cell):
        model["head"] = head
    found: dict[str, Any] = {"models": {cell.model: model}, "study": [grid]}
    defaults = {"min_density": 0, "layerwise": "uniform"}
    if prune := {key: pruned[key] for key, value in defaults.items() if pruned.get(key, value) != value}:
        found["prune"] = prune
    if calibration := dict(pruned.get("calibration") or {}):
        seed, task = calibration.pop("seed", 0), calibration.pop("task", None)
        trained = facts.get("task") or {}
        if task == trained.get("name") and trained.get("labels"):
            task = None  # pruned after it was fine-tuned, on the sentences of the task itself
        found["calibration"] = {**({"task": task} if task else {}), **calibration, "seeds": [seed]}
        if not task:
            grid["measure"] = False  # which would prune the pretrained model as well, and that needs a text
    if cell.recipe and scores:
        found["finetune"] = {key: scores[0].settings[key] for key in Finetune.model_fields if key in scores[0].settings}
    return str(yaml.dump(found, Dumper=_Excerpt, sort_keys=False, width=100)).strip()


class _Excerpt(yaml.SafeDumper):  # type: ignore[misc]
    """YAML as a study writes it: a setting a line, lists of values in one."""

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> Any:
        """Lists of mappings in block style, others in one line."""
        return super().represent_sequence(tag, sequence, not any(isinstance(each, dict) for each in sequence))


def _reproduce(exported: Exported) -> str:
    cell = exported.cell
    commit = f" (commit {exported.commit})" if exported.commit else ""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    place = cell.place.removesuffix("/model")
    return (
        f"With llm-sparsity {llm_sparsity.__version__}{commit}, {versions}: `llm-sparsity run STUDY.yaml`, then "
        f"`llm-sparsity export {place} --output FOLDER`. The excerpt has what makes this model; its tasks and recipes "
        "are entries of the study, and everything else is at its default."
    )


def checked_note(checked: Checked | None) -> str:
    """The result of the check, for the card and the terminal."""
    if checked is None:
        return "Not checked: the export was told not to."
    return (
        f"transformers {checked.transformers}, in a process without llm-sparsity, loads this folder and computes the "
        f"outputs of the original model on {checked.sentences} sentences in float32; the largest difference is "
        f"{checked.difference:.3g}, the largest output {checked.largest:.3g}."
    )
