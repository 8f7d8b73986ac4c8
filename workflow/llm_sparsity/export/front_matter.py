"""The front matter of a model card: what the hub reads."""

import re
from collections.abc import Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData, metadata_load

from llm_sparsity.export.cell import Cell
from llm_sparsity.export.scores import Score
from llm_sparsity.study.methods import Chain

# The auto class that loads a model -> the hub's pipeline; that of any other is "feature-extraction".
PIPELINES = {
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForSeq2SeqLM": "text-generation",
}


def front_matter(cell: Cell, pipeline: str, scores: Sequence[Score]) -> ModelCardData:
    """What the hub reads of a card. Only hub ids are given as ids: the hub refuses other names.

    Args:
        cell: what the card is about.
        pipeline: of the hub.
        scores: of the cell.
    """
    source = _card_of_source(cell)
    licence, name = licence_of(cell)
    own = cell.facts.get("source") or {}
    task = cell.task_facts(cell.task) if cell.task else {}
    datasets = [*_listed(source.get("datasets")), *_listed((task.get("source") or {}).get("hub"))]
    pruned = cell.facts.get("pruned") or {}
    results = [_result(cell, score) for score in scores]
    return ModelCardData(
        model_name=cell.name,
        base_model=own.get("hub"),
        license=licence,
        license_name=name,
        license_link=source.get("license_link") if name else None,
        language=source.get("language"),
        datasets=list(dict.fromkeys(datasets)) or None,
        library_name="transformers",
        pipeline_tag=pipeline,
        tags=["llm-sparsity", *(["pruned", *Chain(pruned["method"]).parts] if pruned else [])],
        metrics=list(dict.fromkeys(score.metric for score in scores)) or None,
        eval_results=results or None,
    )


def _result(cell: Cell, score: Score) -> EvalResult:
    facts = cell.task_facts(score.task)
    source = facts.get("source") or {}
    classifies = facts.get("task") in ("classification", "regression")
    return EvalResult(
        task_type="text-classification" if classifies else "text-generation",
        dataset_type=source.get("hub", score.task),
        dataset_name=score.task,
        dataset_split=score.split,
        dataset_revision=source.get("revision"),
        metric_type=score.metric,
        metric_value=score.value,
    )


def _card_of_source(cell: Cell) -> dict[str, Any]:
    """The front matter of the source's own card, which lies in the model folder; empty if there is none."""
    path = cell.folder.path / "README.md"
    try:
        return dict(metadata_load(path) or {}) if path.is_file() else {}
    except Exception:  # cards are written by hand
        return {}


def licence_of(cell: Cell) -> tuple[str | None, str | None]:
    """The licence as the hub spells it, and its name where the hub has no word for it; None if it is not known."""
    stated = cell.facts.get("licence") or ", ".join(_listed(_card_of_source(cell).get("license")))
    if not stated:
        return None, None
    word = str(stated).lower().removesuffix(" license")
    if re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", word) and word != "other":
        return word, None
    name = _card_of_source(cell).get("license_name") or re.sub(r"[^a-z0-9.]+", "-", word).strip("-")
    return "other", str(name)


def _listed(value: Any) -> list[str]:
    return [str(each) for each in value] if isinstance(value, list) else [str(value)] if value else []
