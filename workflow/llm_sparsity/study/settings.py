"""The sections of a config that set how models are pruned, fine-tuned, evaluated and measured, with their defaults."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from llm_sparsity.study.fields import Fraction, Name, Positive, Section, Seed, refuse_repeats


class Prune(Section):
    """How weights are chosen, by any method."""

    seed: Seed = Field(0, description="of methods that draw random numbers")
    min_density: Fraction = Field(
        0.0, description="the fraction of every tensor that is kept whatever its scores, so that no layer collapses"
    )
    layerwise: Literal["uniform", "owl"] = Field(
        "uniform",
        description="sparsity of each layer, for calibrated methods: equal, or lower where there are more outliers",
    )


class Calibration(Section):
    """The sequences that calibrated methods observe."""

    task: Name | None = Field(
        None,
        description="a language-model task whose split train is the text; absent: only fine-tuned models are pruned by "
        "these methods, which observe the task's own sentences (`one-shot`)",
    )
    samples: Positive = Field(128, description="number of sequences")
    sequence_length: Positive = Field(2048, description="tokens per sequence")
    seeds: list[Seed] = Field(
        [0], min_length=1, description="each draws other sequences, and makes one variant of every calibrated method"
    )

    @model_validator(mode="after")
    def _no_repeats(self) -> Self:
        refuse_repeats(self)
        return self


class Measure(Section):
    """How seconds and memory of inference are measured."""

    batch_sizes: list[Positive] = Field([1, 32], min_length=1, description="sequences per batch")
    sequence_length: Positive = Field(128, description="tokens per sequence")
    repeats: Annotated[int, Field(ge=3)] = Field(15, description="rounds, each of which runs every model once")

    @model_validator(mode="after")
    def _no_repeats(self) -> Self:
        refuse_repeats(self)
        return self


class Finetune(Section):
    """How a variant is fine-tuned."""

    epochs: Annotated[int, Field(ge=0)] = Field(
        3,
        description="passes over the training split; 0, for models whose `head` is of the task: they are evaluated as "
        "they are, dense and pruned",
    )
    learning_rate: Annotated[float, Field(gt=0)] = Field(
        2e-5, description="highest, after the warm-up; then it falls linearly to 0"
    )
    batch_size: Positive = Field(128, description="sequences per optimizer step, over all processes")
    micro_batch_size: Positive = Field(32, description="sequences per forward pass and process")
    max_length: Positive = Field(128, description="tokens per sentence or pair; longer ones are truncated")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="of AdamW, for matrices alone")
    warmup_ratio: Fraction = Field(0.0, description="fraction of all steps")
    max_grad_norm: Annotated[float, Field(gt=0)] = Field(
        1.0, description="gradients are clipped to this norm; a large one, such as 1e9, clips none"
    )
    freeze_embeddings: bool = Field(False, description="do not train the scope `embeddings`")
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, more time")
    save_minutes: Positive = Field(15, description="minutes between saves within an epoch; does not affect results")


class Schedule(Section):
    """Remove weights of the fine-tuned dense model gradually while training, along a cubic curve."""

    begin: Fraction = Field(0.0, description="fraction of all steps before the first weights are removed")
    end: Annotated[float, Field(gt=0, le=1)] = Field(
        0.3, description="fraction of all steps after which the target sparsity is reached"
    )
    scores: Literal["magnitude", "movement"] = Field("magnitude", description="criterion")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.begin >= self.end:
            raise ValueError(f"begin: {self.begin} is not before end, {self.end}")
        return self


class Distill(Section):
    """Learn from the dense model that was fine-tuned on the same task with the same seed. Values weight the losses."""

    labels: Annotated[float, Field(ge=0)] = Field(1.0, description="cross-entropy with the true labels")
    logits: Annotated[float, Field(ge=0)] = Field(1.0, description="divergence from the teacher's probabilities")
    hidden: Annotated[float, Field(ge=0)] = Field(10.0, description="distance from the output of each teacher layer")
    temperature: Annotated[float, Field(gt=0)] = Field(2.0, description="divides both models' logits")
    unlabelled: bool = Field(False, description="learn from the sentences too that the task names as `unlabelled`")

    @model_validator(mode="after")
    def _not_all_zero(self) -> Self:
        if not (self.labels or self.logits or self.hidden):
            raise ValueError("labels, logits and hidden are all 0, so nothing is learned; raise one")
        if self.unlabelled and not (self.logits or self.hidden):
            raise ValueError("unlabelled: nothing is learned from it, as logits and hidden are 0; raise one")
        return self


class Lora(Section):
    """Train low-rank updates of the matrices instead of all weights. Merged updates keep the mask."""

    rank: Positive = Field(16, description="of an update")
    alpha: Annotated[float, Field(gt=0)] = Field(32.0, description="updates are scaled by alpha / rank")


class Recipe(Section):
    """How a variant is fine-tuned, to recover quality that pruning took."""

    start: Literal["pretrained", "finetuned"] = Field(
        "pretrained",
        description="what is pruned: the pretrained model, or the dense one fine-tuned on the task; a recipe with "
        "`schedule` or `distill` starts from the weights of the latter in either case",
    )
    mask: Literal["kept", "released"] = Field("kept", description="removed weights stay removed, or may grow back")
    schedule: Schedule | None = Field(None, description="absent: all weights are removed before training")
    distill: Distill | None = Field(None, description="absent: learn from the labels alone")
    lora: Lora | None = Field(None, description="absent: train the weights themselves")
    finetune: dict[str, Any] = Field({}, description="overrides of the config's and the task's `finetune`")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.schedule and self.mask == "released":
            raise ValueError("schedule: weights that it removes cannot be released; remove schedule, or use mask: kept")
        if self.schedule and self.start == "finetuned":
            raise ValueError("schedule: removes weights of the fine-tuned dense model in any case; remove start")
        if not self.trains and self.start == "pretrained":
            raise ValueError("finetune.epochs: found 0, which needs start: finetuned; add it, or give at least 1")
        of_training = {"mask: released": self.mask == "released", "distill": self.distill, "lora": self.lora}
        if not self.trains and (useless := [key for key, given in of_training.items() if given]):
            raise ValueError(f"{useless[0]}: without effect, as finetune.epochs is 0; remove one of them")
        if self.lora and (self.schedule or self.mask == "released"):
            other = "schedule" if self.schedule else "mask: released"
            raise ValueError(f"lora: keeps the weights as they were pruned, which excludes {other}; remove one")
        return self

    def training(self) -> dict[str, Any]:
        """The settings of a training beside `finetune`; `distill.unlabelled` is none, it decides over its inputs."""
        return self.model_dump(exclude={"finetune": True, "distill": {"unlabelled"}})

    @property
    def trains(self) -> bool:
        """Whether weights change after pruning; if not, the pruned model is evaluated as it is."""
        return self.finetune.get("epochs") != 0

    @property
    def needs_dense(self) -> bool:
        """Whether training needs the fine-tuned dense model: a schedule starts from it, distillation learns from it."""
        return bool(self.schedule or self.distill)


RECIPES = {  # built in, so that these words mean the same in every study
    "kept": Recipe(),
    "released": Recipe(mask="released"),
    "one-shot": Recipe(start="finetuned", finetune={"epochs": 0}),
    "lora": Recipe(lora=Lora(), finetune={"learning_rate": 1e-3}),
    # Small batches and a high learning rate: at 90 % sparsity the remaining weights have to move far. Chosen on MiniLM,
    # and provisional (BENCHMARKS.md, Recovery); a larger model may need a lower rate.
    "gradual": Recipe(schedule=Schedule(), distill=Distill(), finetune={"learning_rate": 1.5e-3, "batch_size": 8}),
    "gradual-unlabelled": Recipe(
        schedule=Schedule(), distill=Distill(unlabelled=True), finetune={"learning_rate": 2e-3, "batch_size": 16}
    ),
}


class Evaluate(Section):
    """How a causal language model is evaluated without training. Zero-shot tasks use `batch_size` only."""

    sequence_length: Annotated[int, Field(gt=1)] = Field(2048, description="tokens per window")
    max_tokens: Positive | None = Field(None, description="tokens of the text that are used; absent: all")
    batch_size: Positive = Field(1, description="windows per batch")
