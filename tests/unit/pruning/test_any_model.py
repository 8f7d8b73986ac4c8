"""Every stage on models of many types, as the workflow calls them. All weights are RANDOM, models tiny."""

from collections.abc import Callable
from pathlib import Path

import pytest

from llm_sparsity.data.tasks import TaskFolder
from llm_sparsity.evaluation.evaluate import evaluate
from llm_sparsity.evaluation.weights import weights
from llm_sparsity.inference.measure import measure
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.models.loading import check_checkpoint, load_base
from llm_sparsity.pruning.prune import prune
from llm_sparsity.storage.files import read_json
from llm_sparsity.study.sparsity import Sparsity
from tests.tiny import save_mood_task, save_text_task
from tests.unit.training.helpers import run
from tests.zoo import EVERY, architecture, save

pytestmark = pytest.mark.slow
DRAW = {"samples": 4, "sequence_length": 16, "seed": 0}
# Types that calibrated methods refuse -> the reason.
UNOBSERVED = {
    "albert": "its layer runs 2 times",
    "gpt_oss": "it is not the weight of a linear layer",
    "xlnet": "it is not the weight of a linear layer",
    **dict.fromkeys(("granitemoe", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe"), "fused|not the weight"),
}


@pytest.fixture
def saved(tiny_model: Callable[[str], Path], tmp_path: Path) -> Callable[[str], ModelFolder]:
    """A type of model, with a tokenizer of its architecture."""

    def make(kind: str) -> ModelFolder:
        tokenizer = {"encoder": "bert", "decoder": "gpt2", "encoder-decoder": "bart"}[architecture(kind)]
        return ModelFolder(save(kind, tmp_path / "model", tiny_model(tokenizer), tie_word_embeddings=True))

    return make


@pytest.fixture
def text(tmp_path: Path) -> TaskFolder:
    return TaskFolder(save_text_task(tmp_path / "text"))


@pytest.mark.parametrize("kind", EVERY)
def test_a_type_goes_through_every_stage(
    kind: str, saved: Callable[[str], ModelFolder], text: TaskFolder, tmp_path: Path
) -> None:
    model = saved(kind)
    prune(model, {Sparsity("0.5"): tmp_path / "pruned"}, method="magnitude", scope="linear")
    pruned = ModelFolder(tmp_path / "pruned/model")
    check_checkpoint(pruned)
    assert pruned.pruned
    assert pruned.pruned["measured_sparsity"] == pytest.approx(0.5, abs=1e-3)
    weights(model, tmp_path)
    measure(pruned, model, tmp_path, batch_sizes=[1], sequence_length=8, repeats=1)
    assert {row["execution"] for row in read_json(tmp_path / "cost.json")["speed"]} >= {"dense", "sparse"}
    if architecture(kind) == "decoder":
        evaluate(pruned, text, tmp_path, sequence_length=16, max_tokens=200, batch_size=2)
        assert read_json(tmp_path / "metrics.json")["metrics"]["perplexity"] > 1
        run(
            pruned,
            text,
            tmp_path / "run",
            epochs=1,
            max_length=16,
            evaluation={"sequence_length": 16, "max_tokens": 64},
        )
    elif kind == "pegasus":
        with pytest.raises(UserError, match=r"transformers has no ForSequenceClassification of type 'pegasus'; choose"):
            run(pruned, TaskFolder(save_mood_task(tmp_path / "mood")), tmp_path / "run", epochs=1)
        return
    else:
        run(pruned, TaskFolder(save_mood_task(tmp_path / "mood")), tmp_path / "run", epochs=1)
    trained = ModelFolder(tmp_path / "run/out/model")
    check_checkpoint(trained)
    assert trained.pruned
    assert trained.pruned["measured_sparsity"] >= pruned.pruned["measured_sparsity"]


@pytest.mark.parametrize("kind", EVERY)
def test_a_type_is_calibrated_or_refused_in_a_line(
    kind: str, saved: Callable[[str], ModelFolder], text: TaskFolder, tmp_path: Path
) -> None:
    outputs = {Sparsity("0.5"): tmp_path / "out"}
    if reason := UNOBSERVED.get(kind):
        with pytest.raises(UserError, match=f"^method wanda: the inputs of .* are not observed: .*{reason}") as error:
            prune(saved(kind), outputs, method="wanda", scope="linear", calibration=DRAW, text=text)
        assert "\n" not in str(error.value)
        return
    prune(saved(kind), outputs, method="wanda+reconstruct", scope="linear", calibration=DRAW, text=text)
    pruned = ModelFolder(tmp_path / "out/model").pruned
    assert pruned
    assert pruned["measured_sparsity"] == pytest.approx(0.5, abs=1e-3)


def test_low_rank_updates_leave_packed_experts_alone(
    saved: Callable[[str], ModelFolder], text: TaskFolder, tmp_path: Path
) -> None:
    model = saved("qwen3_moe")
    prune(model, {Sparsity("0.5"): tmp_path / "pruned"}, method="magnitude", scope="linear")
    pruned = ModelFolder(tmp_path / "pruned/model")
    windows = {"sequence_length": 16, "max_tokens": 64}
    run(pruned, text, tmp_path / "run", epochs=1, max_length=16, evaluation=windows, lora={"rank": 2, "alpha": 4.0})
    before, after = load_base(pruned).state_dict(), load_base(ModelFolder(tmp_path / "run/out/model")).state_dict()
    changed = {name for name, weight in before.items() if not weight.equal(after[name])}
    assert changed
    assert not [name for name in changed if "experts" in name]
