"""The sections of a config that name models and tasks, and where they come from."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from llm_sparsity.study.fields import (
    Architecture,
    Commit,
    Inside,
    Name,
    Pattern,
    Pinned,
    Positive,
    Section,
    Seed,
    Sha256,
)
from llm_sparsity.study.settings import Evaluate


class Source(Section):
    """Where a model or a task comes from: exactly one of `hub`, `package`, `folder`."""

    hub: str | None = Field(None, description="repository id on the model or data set hub")
    revision: Commit | None = Field(None, description="commit of the hub repository; required with hub")
    converted: Literal[True] | None = Field(
        None, description="for a model whose revision has only pickles: use the safetensors that the hub made of them"
    )
    package: Pinned | None = Field(None, description="name==version of a registry package")
    sha256: Sha256 | None = Field(None, description="of the package's archive; required with package")
    path: Inside | None = Field(None, description="file or folder inside the package's archive")
    dtype: Literal["float16", "bfloat16", "float32"] | None = Field(
        None, description="of the weights that a GGUF file is converted to; default: float32"
    )
    folder: str | None = Field(None, description="a folder on this machine")
    max_bytes: Positive | None = Field(
        None,
        description="largest size of a compressed file or archive once it is decompressed; default: 256 MiB, or 50 "
        "times the size of the archive if that is more",
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        needs = {"hub": {"revision"}, "package": {"sha256"}, "folder": set[str]()}
        allowed = {"hub": {"revision", "converted"}, "package": {"sha256", "path"}, "folder": set[str]()}
        kinds = [kind for kind in needs if getattr(self, kind) is not None]
        if len(kinds) != 1:
            raise ValueError(f"give exactly one of hub, package or folder, found {' and '.join(kinds) or 'none'}")
        given = {key for key in ("revision", "converted", "sha256", "path") if getattr(self, key) is not None}
        if missing := needs[kinds[0]] - given:
            raise ValueError(f"`{kinds[0]}` needs `{missing.pop()}` too, so that everyone gets the same bytes")
        if extra := given - allowed[kinds[0]]:
            raise ValueError(f"`{extra.pop()}` does not go with `{kinds[0]}`; remove it")
        if self.dtype and not str(self.path).endswith(".gguf"):
            raise ValueError("`dtype` is for GGUF files; safetensors keep theirs, so remove it")
        return self


class Model(Section):
    """A pretrained checkpoint."""

    architecture: Architecture = Field(description="compared with the model when it is downloaded")
    source: Source
    gpus: Positive = Field(
        1, description="GPUs of one fine-tuning, fewer if the machine has fewer; on Polaris whole nodes if > 1"
    )
    accelerate: Literal["node", "fsdp"] = Field(
        "node", description="with several GPUs: node replicates the model on each, fsdp shards it over them"
    )
    head: Name | None = Field(
        None,
        description="task that the checkpoint's own classification head was trained on, for a classifier that is "
        "fine-tuned already; absent: a head that comes with the checkpoint is left out",
    )
    parameters: Annotated[float, Field(gt=0)] | None = Field(
        None, description="number of parameters, for the plan until the model is downloaded; does not affect results"
    )


class Binarize(Section):
    """Turn a rating into a label: 1 above the threshold, 0 below. Rows at it, or closer than `margin`, are dropped."""

    threshold: float = Field(0.0, description="ratings above it have label 1")
    margin: Annotated[float, Field(ge=0)] = Field(0.0, description="smallest distance to the threshold")


class Split(Section):
    """Split a validation set off the training rows."""

    validation: Positive = Field(description="rows")
    seed: Seed = Field(0, description="of the draw")


class Pairs(Section):
    """Draw sentence pairs from the rows; the label is whether both sentences have the same label."""

    train: Positive = Field(description="pairs")
    validation: Positive = Field(description="pairs")
    seed: Seed = Field(0, description="of the draw")
    group: Pattern | None = Field(
        None, description="regular expression; rows whose labels start with equal matches share a label"
    )


class Limit(Section):
    """The largest number of rows of each split, drawn with a fixed seed; of running text, the first ones."""

    train: Positive | None = Field(None, description="rows")
    validation: Positive | None = Field(None, description="rows")
    test: Positive | None = Field(None, description="rows")
    seed: Seed = Field(0, description="of the draw")


Score = Literal["accuracy", "f1", "macro_f1", "combined", "matthews_correlation", "pearsonr", "spearmanr", "perplexity"]
SCORES: dict[str, tuple[Score, ...]] = {  # of each kind of task; the first is the default
    "classification": ("accuracy", "f1", "macro_f1", "combined", "matthews_correlation"),
    "regression": ("pearsonr", "spearmanr"),
    "language-model": ("perplexity",),
    "zero-shot": (),
}


class Task(Section):
    """A data set with a metric."""

    kind: Literal["classification", "regression", "language-model", "zero-shot"] = Field(
        description="scored by accuracy and F1; by correlations, as the label is a number; by perplexity; by "
        "lm-evaluation-harness"
    )
    score: Score | None = Field(
        None,
        description="what the task is judged by in figures, answers, decisions and claims; default: accuracy, pearsonr "
        "or perplexity, by the kind. f1 is of two labels, macro_f1 the mean over all; combined the mean of accuracy "
        "and F1",
    )
    source: Source
    files: dict[Name, Inside] = Field(
        min_length=1,
        description="split -> file inside the source; a task with labels has train and validation, and may have others "
        "that are scored too",
    )
    format: Literal["parquet", "jsonl", "csv", "tsv", "text"] | None = Field(
        None,
        description="of the files; default: by their names. Quotation marks in tsv are ordinary characters, as in GLUE",
    )
    columns: list[str] | None = Field(None, description="column names, for files without a header line")
    harness: str | None = Field(None, description="name of a zero-shot task in lm-evaluation-harness")
    text: str = Field("text", description="column of the sentence or text")
    text_pair: str | None = Field(None, description="column of the second sentence of a pair")
    separator: str | None = Field(
        None,
        description="text between the two sentences of a pair for a decoder, such as a line break; default: what its "
        "tokenizer puts there, which is often nothing",
    )
    label: str | None = Field(None, description="column of the label, for classification and regression")
    labels: list[str] | None = Field(
        None,
        description="names of the labels, in the order of their numbers; in any order if the file names its numbers, "
        "as parquet files of the library datasets do",
    )
    binarize: Binarize | None = None
    split: Split | None = None
    pairs: Pairs | None = None
    limit: Limit | None = None
    finetune: dict[str, Any] | None = Field(
        None, description="overrides of the config's `finetune`; if given, a language-model task is also trained on"
    )
    train_on: Name | None = Field(
        None, description="language-model task whose training text is used instead of this task's own"
    )
    unlabelled: Name | None = Field(
        None,
        description="another task, whose training sentences recipes with `distill: {unlabelled: true}` learn from too, "
        "by the teacher's answers; labels that they may have are not read",
    )
    evaluate: dict[str, Any] = Field({}, description="overrides of the config's `evaluate`")

    @field_validator("files", mode="before")
    @classmethod
    def _one_file_each(cls, value: Any) -> Any:
        """Refuse lists of files, as the shards of a large table are given elsewhere."""
        for split, files in value.items() if isinstance(value, dict) else ():
            if isinstance(files, list):
                raise ValueError(f"{split} has a list; a split is one file, so join the shards into one")
        return value

    @field_validator("labels", mode="before")
    @classmethod
    def _names_are_text(cls, value: Any) -> Any:
        """Refuse 0 for "0", as YAML reads it, and names that no label is equal to, as labels are stripped."""
        for name in value if isinstance(value, list) else []:
            if not isinstance(name, str | bool | None):
                raise ValueError(f'a name is text; write it in quotes: "{name}"')
            if isinstance(name, str) and (not name or name != name.strip()):
                raise ValueError(f"{name!r} is empty, or begins or ends with a blank, as no label does; correct it")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.source.converted:
            raise ValueError("source.converted: applies to models only; remove it")
        if self.harness and self.kind != "zero-shot":
            raise ValueError(f"harness: is for zero-shot tasks, but kind is {self.kind}; correct one of them")
        if self.separator is not None and not (self.text_pair or self.pairs):
            raise ValueError("separator: is put between the sentences of a pair; add text_pair or pairs, or remove it")
        if (self.binarize or self.pairs) and self.labels and len(self.labels) != 2:
            key, classes = ("binarize", "below and above") if self.binarize else ("pairs", "different and equal")
            raise ValueError(f"labels: found {len(self.labels)}, but {key} makes two, {classes}; name these, or none")
        if self.text_pair and self.pairs:
            raise ValueError("pairs: draws the second sentence, which text_pair names; remove one of them")
        if self.binarize and self.pairs and self.pairs.group:
            raise ValueError("pairs.group: replaces the label, of which binarize makes two; remove one of them")
        splits = {*self.files, *(["validation"] if self.split else [])}
        if self.limit and (extra := [split for split in self.limit.model_fields_set - {"seed"} if split not in splits]):
            raise ValueError(f"limit.{extra[0]}: there is no such split, only {', '.join(sorted(splits))}; remove it")
        if self.labels and (twice := [name for name in self.labels if self.labels.count(name) > 1]):
            raise ValueError(f"labels: {twice[0]!r} is given twice; remove one")
        if self.train_on and self.kind != "language-model":
            raise ValueError("train_on: is for language-model tasks; remove it")
        if self.unlabelled and not self.has_labels:
            raise ValueError("unlabelled: is for tasks with labels; remove it, or use train_on for a language model")
        if self.score and self.score not in SCORES[self.kind]:
            known = ", ".join(SCORES[self.kind])
            fix = f"choose one of {known}" if known else "remove it, lm-evaluation-harness knows the score"
            raise ValueError(f"score: found {self.score!r}, but kind is {self.kind}; {fix}")
        check = {
            "classification": self._classification,
            "regression": self._regression,
            "language-model": self._language_model,
            "zero-shot": self._zero_shot,
        }
        check[self.kind]()
        return self

    @property
    def has_labels(self) -> bool:
        """Whether its examples have labels, for which a model needs a head that is trained."""
        return self.kind in ("classification", "regression")

    @property
    def judged_by(self) -> str | None:
        """The score that the task is judged by; None: several, of lm-evaluation-harness."""
        return self.score or next(iter(SCORES[self.kind]), None)

    def _classification(self) -> None:
        self._labelled()
        if self.score == "f1" and len(self.labels or ()) > 2:
            raise ValueError("score: f1 is for two labels; use macro_f1, the mean over all")

    def _regression(self) -> None:
        self._labelled()
        if extra := [key for key in ("labels", "binarize", "pairs") if getattr(self, key)]:
            raise ValueError(f"{extra[0]}: makes classes, but kind is regression; remove one of them")

    def _labelled(self) -> None:
        if self.label is None:
            raise ValueError("label: missing; name the column that holds the label")
        expected = {"train"} if self.split else {"train", "validation"}
        others = set(self.files) - expected if not (self.split or self.pairs) else set()
        if "unlabelled" in others:
            raise ValueError("files.unlabelled: is what results call the sentences without labels; rename the split")
        if set(self.files) - others != expected:
            raise ValueError(
                f"files: expected {' and '.join(sorted(expected))}, found {', '.join(self.files)}; "
                "`split` splits a validation set off train"
            )
        if self.evaluate:
            raise ValueError("evaluate: is for language-model tasks; use finetune here")

    def _language_model(self) -> None:
        if extra_files := set(self.files) - {"train", "test"}:
            raise ValueError(
                "files: a language-model task has test, to measure perplexity on, or train, to calibrate with, or "
                f"both; found {extra_files.pop()}"
            )
        labelled = ("label", "labels", "binarize", "split", "pairs", "separator")
        if extra := [key for key in labelled if getattr(self, key) is not None]:
            raise ValueError(f"{extra[0]}: is for tasks with labels, a language model's text has none; remove it")
        if self.text_pair and set(self.files) != {"train"}:
            raise ValueError(
                "text_pair: a language model reads no pairs; remove it, or leave files only train, for another task to "
                "name as `unlabelled`"
            )
        if self.train_on and self.finetune is None:
            raise ValueError("train_on: names a training text, but the task is not trained on; add finetune: {}")
        if self.finetune is not None and {*self.files, *(["train"] if self.train_on else [])} != {"train", "test"}:
            raise ValueError(
                f"finetune: trains on the split train and evaluates on test, but files has {', '.join(self.files)}; "
                "add the other, name another task's text by train_on, or remove finetune"
            )

    def _zero_shot(self) -> None:
        if self.harness is None:
            raise ValueError("harness: missing; name the task of lm-evaluation-harness, such as boolq")
        if len(self.files) != 1 or set(self.files) - {"validation", "test"}:
            raise ValueError(
                f"files: expected validation or test, the one that the harness scores, found {', '.join(self.files)}"
            )
        others = ("text_pair", "label", "labels", "binarize", "split", "pairs", "finetune")
        if extra := [key for key in others if getattr(self, key)]:
            raise ValueError(f"{extra[0]}: the harness knows how to read and score a zero-shot task; remove it")
        if extra := [key for key in self.evaluate if key in Evaluate.model_fields and key != "batch_size"]:
            raise ValueError(f"evaluate.{extra[0]}: does not affect a zero-shot task; remove it")
