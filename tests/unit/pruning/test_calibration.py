"""Calibrated methods beside slow references that share no code with them."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llm_sparsity.data import tasks
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.loading import family, in_scope, load_model, load_tokenizer
from llm_sparsity.pruning import calibration as calibrate
from llm_sparsity.pruning import layerwise as _owl
from llm_sparsity.pruning.calibration import sequences
from llm_sparsity.pruning.methods import admm, sparsegpt, wanda
from llm_sparsity.pruning.prune import prune
from llm_sparsity.pruning.selection import lowest, removed_of, shares
from llm_sparsity.storage.container import Reader, load, save
from llm_sparsity.storage.files import read_manifest, write_manifest
from tests.tiny import WORDS

KINDS = ["llama", "gpt2", "bert", "roberta", "distilbert", "bart"]
DRAW = {"samples": 6, "sequence_length": 32, "seed": 0}
Array = NDArray[np.float64]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    words = np.random.default_rng(0).choice(WORDS, size=(150, 9))
    (folder / "lines.txt").write_text("".join(" ".join(line) + "\n" for line in words))
    facts = tasks.prepare({"train": folder / "lines.txt"}, folder / "words", kind="language-model")
    write_manifest(folder / "words", kind="task", **facts)
    return folder / "words"


def pruned(model: Path, text: Path, output: Path, level: str, method: str, scope: str = "linear", **more: Any) -> Any:
    prune(model, {level: output}, method=method, scope=scope, calibration=DRAW, text=text, **more)
    return load(output / "model")


def gone(result: dict[str, torch.Tensor], names: list[str]) -> int:
    return sum(int((result[name] == 0).sum()) for name in names)


# The methods alone.


def test_wanda_by_hand() -> None:
    weight = torch.tensor([[1.0, -2, 3, -4], [5, 1, -2, 2]])
    inputs = torch.tensor([[4.0, 0, 0, 0], [0, 3, 0, 0], [0, 0, 0.6, 0.3], [0, 0, -0.8, 0.4]])
    norms = wanda.prepare(wanda.observe(inputs))
    assert norms.tolist() == pytest.approx([4, 3, 1, 0.5])
    # Scores: 4 6 3 2 and 20 3 2 1. The size alone would keep the last two of the first row.
    assert wanda.prune(weight, norms, "0.5").tolist() == [[1, -2, 0, 0], [5, 1, 0, 0]]
    assert wanda.prune(weight, norms, "1of2").tolist() == [[0, -2, 3, 0], [5, 0, -2, 0]]
    assert wanda.prune(weight, norms, "0.25").tolist() == [[1, -2, 3, 0], [5, 1, -2, 0]]


def test_sparsegpt_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs 0 and 1 go together, and 2 and 3: H = [[2, 1], [1, 2]] for each pair, its inverse [[2, -1], [-1, 2]] / 3.

    A weight of the first costs 1.5 w^2 and is made up for by half of it in the second, whose weight costs 2 w^2 then.
    """
    monkeypatch.setattr(sparsegpt, "DAMPING", 1e-9)
    weight = torch.tensor([[1.0, 2, 3, 4], [4, -1, 2, 1]])
    hessian = torch.tensor([[2.0, 1, 0, 0], [1, 2, 0, 0], [0, 0, 2, 1], [0, 0, 1, 2]])
    upper = sparsegpt.prepare(hessian)
    # Costs: 1.5 8 13.5 32 and 24 2 6 2; the four lowest of all go.
    expected = torch.tensor([[0, 2.5, 3, 4], [4, 0, 0, 0]])
    torch.testing.assert_close(sparsegpt.prune(weight, upper, "0.5"), expected)
    # Of each pair the cheaper one: 1 of (1, 2), 3 of (3, 4); -1 of (4, -1), 1 of (2, 1).
    expected = torch.tensor([[0, 2.5, 0, 5.5], [4, 0, 2, 0]])
    torch.testing.assert_close(sparsegpt.prune(weight, upper, "1of2"), expected)


def slow_wanda(weight: Array, inputs: Array, level: str) -> Array:
    """As the paper says it: one comparison group an output."""
    out = weight.copy()
    norms = np.sqrt((inputs**2).sum(0))
    taken = 0
    for row in range(len(weight)):
        scores = np.abs(weight[row]) * norms
        if "of" in level:
            kept, group = map(int, level.split("of"))
            for start in range(0, len(scores), group):
                order = np.argsort(scores[start : start + group], kind="stable")
                out[row, start + order[: group - kept]] = 0
        else:
            count = round(float(level) * (row + 1) * len(scores)) - taken
            taken += count
            out[row, np.argsort(scores, kind="stable")[:count]] = 0
    return out


def slow_sparsegpt(weight: Array, inputs: Array, level: str) -> Array:
    """As the paper says it: column by column, each time the inverse of the Hessian of the columns that are left."""
    rows, columns = weight.shape
    hessian = inputs.T @ inputs
    hessian += 0.01 * np.diag(hessian).mean() * np.eye(columns)
    inverses = [np.linalg.inv(hessian[j:, j:]) for j in range(columns)]
    kept, group = map(int, level.split("of")) if "of" in level else (0, 1)
    weight = weight.copy()
    remove = np.zeros(weight.shape, bool)
    taken = 0
    for j in range(columns):
        if group == 1 and j % 128 == 0:
            end = min(j + 128, columns)
            costs = np.stack([weight[:, k] ** 2 / inverses[k][0, 0] for k in range(j, end)], axis=1)
            count = round(float(level) * rows * end) - taken
            taken += count
            chosen = np.argsort(costs, axis=None)[:count]
            remove[:, j:end].flat[chosen] = True
        if group > 1 and j % group == 0:
            for row in range(rows):
                costs = [weight[row, k] ** 2 / inverses[k][0, 0] for k in range(j, j + group)]
                remove[row, j + np.argsort(costs)[: group - kept]] = True
        for row in np.flatnonzero(remove[:, j]):
            weight[row, j:] -= weight[row, j] / inverses[j][0, 0] * inverses[j][0]
            weight[row, j] = 0
    return weight


SLOW = {"wanda": slow_wanda, "sparsegpt": slow_sparsegpt}


@pytest.mark.parametrize("method", [wanda, sparsegpt])
@pytest.mark.parametrize(("rows", "columns"), [(5, 12), (16, 200), (3, 260)])
@pytest.mark.parametrize("level", ["0.5", "0.3", "0.95", "2of4", "1of4"])
def test_a_matrix_is_pruned_as_the_paper_says(method: Any, rows: int, columns: int, level: str) -> None:
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(rows, columns, generator=generator)
    mixed = torch.randn(columns, columns, generator=generator) / columns**0.5
    inputs = torch.randn(4 * columns, columns, generator=generator) @ mixed
    batches = [method.observe(part) for part in inputs.split(50)]
    before = weight.clone()
    result = method.prune(weight, method.prepare(sum(batches)), level)
    expected = SLOW[method.__name__.rpartition(".")[2]](weight.double().numpy(), inputs.double().numpy(), level)
    assert torch.equal(result == 0, torch.from_numpy(expected) == 0)
    torch.testing.assert_close(result, torch.from_numpy(expected).float(), rtol=1e-3, atol=1e-4)
    assert torch.equal(weight, before)


def test_admm_by_hand() -> None:
    """Inputs that never go together leave nothing to fit: what Wanda keeps is what stays, as it was."""
    weight = torch.tensor([[1.0, -2, 3, -4], [5, 1, -2, 2]])
    hessian = torch.diag(torch.tensor([16.0, 9, 1, 0.25]))  # scores: 4 6 3 2 and 20 3 2 1
    result = admm.prune(weight, admm.prepare(hessian), "2of4")
    torch.testing.assert_close(result, torch.tensor([[1.0, -2, 0, 0], [5, 1, 0, 0]]), rtol=0.05, atol=0)
    result = admm.prune(weight, admm.prepare(hessian), "0.625")
    torch.testing.assert_close(result, torch.tensor([[1.0, -2, 0, 0], [5, 0, 0, 0]]), rtol=0.05, atol=0)
    result = admm.prune(weight, admm.prepare(hessian), "1of2")
    torch.testing.assert_close(result, torch.tensor([[0, -2.0, 3, 0], [5, 0, -2, 0]]), rtol=0.05, atol=0)


@pytest.mark.parametrize("level", ["0.5", "0.7", "2of4"])
def test_what_is_fitted_better_is_nearer_to_the_dense_output(level: str) -> None:
    """The papers' order, in the error that they minimise: ADMM, SparseGPT, Wanda."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(64, 128, generator=generator)
    inputs = torch.randn(2000, 128, generator=generator) @ torch.randn(128, 128, generator=generator)
    outputs = inputs @ weight.t()
    errors = []
    for method in (admm, sparsegpt, wanda):
        result = method.prune(weight, method.prepare(method.observe(inputs)), level)
        removed = 64 * 64 if level == "2of4" else removed_of(weight.numel(), level)
        assert int((result == 0).sum()) == removed
        errors.append(float((inputs @ result.t() - outputs).square().sum() / outputs.square().sum()))
    assert errors[0] < 0.8 * min(errors[1:])
    if level != "0.7":  # SparseGPT compares all rows, which here are equally important by chance
        assert errors[1] < errors[2]
    # No weight that stays can be moved to make the error of ADMM much smaller: least squares on its mask.
    result = admm.prune(weight, admm.prepare(admm.observe(inputs)), level)
    for row, dense in zip(result.double().numpy(), weight.double().numpy(), strict=True):
        kept = np.flatnonzero(row)
        x = inputs.double().numpy()
        best, *_ = np.linalg.lstsq(x[:, kept], x @ dense, rcond=None)
        least = ((x[:, kept] @ best - x @ dense) ** 2).sum()
        assert ((x @ row - x @ dense) ** 2).sum() < 1.5 * least


@settings(max_examples=50, deadline=None)
@given(
    rows=st.integers(1, 9), columns=st.integers(1, 300), level=st.integers(0, 99), same=st.booleans(),
    method=st.sampled_from([wanda, sparsegpt, admm]),
)  # fmt: skip
def test_the_count_is_the_count_asked_for(rows: int, columns: int, level: int, same: bool, method: Any) -> None:
    generator = torch.Generator().manual_seed(level)
    weight = torch.ones(rows, columns) if same else torch.randn(rows, columns, generator=generator)
    inputs = torch.ones(3, columns) if same else torch.randn(3, columns, generator=generator)  # a singular Hessian
    sparsity = f"0.{level:02d}"
    result = method.prune(weight, method.prepare(method.observe(inputs)), sparsity)
    assert int((result == 0).sum()) == removed_of(rows * columns, sparsity)
    if method is wanda:
        counts = (result == 0).sum(1)
        assert int(counts.max() - counts.min()) <= 1
        assert torch.equal(result[result != 0], weight[result != 0])


@given(st.lists(st.integers(0, 1000), max_size=20), st.integers(0, 99))
def test_shares_come_to_the_whole(sizes: list[int], level: int) -> None:
    found = shares(sizes, f"0.{level:02d}")
    assert sum(found) == removed_of(sum(sizes), f"0.{level:02d}")
    assert all(abs(share - size * level / 100) <= 1 for share, size in zip(found, sizes, strict=True))


def test_the_lowest_of_equal_scores_are_the_first() -> None:
    scores = torch.tensor([[2.0, 1, 1, 1], [0, 0, 0, 0]])
    assert lowest(scores, 2).tolist() == [[False, True, True, False], [True, True, False, False]]
    assert lowest(scores, torch.tensor([[0], [3]])).tolist() == [[False] * 4, [True, True, True, False]]


def test_a_singular_hessian_is_damped_more_and_this_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sparsegpt, "DAMPING", 1e-12)  # nothing beside what float32 can tell apart
    inputs = torch.ones(4, 50)
    upper = sparsegpt.prepare(sparsegpt.observe(inputs))
    assert "a Hessian of 50 inputs is singular; its damping is raised to" in capsys.readouterr().out
    assert bool(upper.isfinite().all()) and bool((upper.diagonal() > 0).all())
    assert torch.equal(upper, upper.triu())


def test_weights_of_an_input_that_is_always_zero_go_first() -> None:
    inputs = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    inputs[:, 3] = 0
    weight = torch.ones(4, 8)
    weight[:, 3] = 100
    result = sparsegpt.prune(weight, sparsegpt.prepare(sparsegpt.observe(inputs)), "0.125")
    assert result[:, 3].tolist() == [0] * 4
    torch.testing.assert_close(result[:, :3], weight[:, :3])  # nothing to make up for
    nothing = sparsegpt.prune(weight, sparsegpt.prepare(torch.zeros(8, 8)), "0.5")
    assert int((nothing == 0).sum()) == 16


# Whole models.


def slow_model(folder: Path, drawn: torch.Tensor, level: str, method: str) -> dict[str, Array]:
    """The whole model in memory, run from its beginning for every block; name in the file -> pruned (out, in)."""
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    known = family(folder)
    with Reader(folder) as reader:
        names = {name.removeprefix(f"{model.base_model_prefix}."): name for name in reader.names}
    layers: dict[tuple[str, int], dict[str, Any]] = {}
    for path, module in model.named_modules():
        name = names.get(f"{path}.weight", "")
        if in_scope(place := known.place(name), "linear"):
            layers.setdefault((place.stack, place.layer), {})[name] = module
    pruned: dict[str, Array] = {}
    for stack in ("encoder", "decoder"):
        for (_, _), modules in sorted(item for item in layers.items() if item[0][0] == stack):
            seen: dict[str, list[Any]] = {name: [] for name in modules}
            hooks = [
                module.register_forward_hook(lambda _, args, __, into=seen[name]: into.append(args[0].flatten(0, -2)))
                for name, module in modules.items()
            ]
            with torch.no_grad():
                model(input_ids=drawn)
            for hook in hooks:
                hook.remove()
            for name, module in modules.items():
                weight = module.weight.detach().double().numpy()
                weight = weight.T if known.is_transposed(name) else weight
                pruned[name] = SLOW[method](weight, torch.cat(seen[name]).double().numpy(), level)
                result = pruned[name].T if known.is_transposed(name) else pruned[name]
                module.weight.data = torch.from_numpy(result.copy()).float()
    return pruned


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("method", "level"), [("wanda", "0.5"), ("wanda", "2of4"), ("sparsegpt", "0.3")])
def test_block_by_block_is_the_same_as_the_whole_model_at_once(
    kind: str, method: str, level: str, tiny_model: Callable[[str], Path], text: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(calibrate, "TOKENS", 64)  # two sequences at once
    model = tiny_model(kind)
    result = pruned(model, text, tmp_path, level, method)
    expected = slow_model(model, sequences(model, text, **DRAW), level, method)
    before, known = load(model), family(model)
    assert {name for name in result if in_scope(known.place(name), "linear")} == set(expected)
    differing = total = 0
    for name, weight in result.items():
        if name not in expected:
            assert torch.equal(weight, before[name])
            continue
        assert weight.shape == before[name].shape and weight.dtype == before[name].dtype
        oriented = (weight.t() if known.is_transposed(name) else weight).double().numpy()
        differing += int(((oriented == 0) != (expected[name] == 0)).sum())
        total += weight.numel()
        assert np.linalg.norm(oriented - expected[name]) < 0.02 * np.linalg.norm(expected[name]), name
    assert differing <= 0.001 * total  # near ties
    loaded = load_model(transformers.AutoModel, tmp_path / "model")
    assert bool(loaded(input_ids=torch.tensor([[1, 2, 3]])).last_hidden_state.isfinite().all())


OTHERS: dict[str, Any] = {
    "opt": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 64,
        "word_embed_proj_dim": 32,
    },
    "gpt_neox": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    "mistral": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    "qwen2": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    "qwen3": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    "electra": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "embedding_size": 16},
    "mbart": {"d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_every_other_family_runs_block_by_block_too(
    kind: str, tiny_model: Callable[[str], Path], text: Path, tmp_path: Path
) -> None:
    tokenizer = {"electra": "bert", "mbart": "bart"}.get(kind, "llama")
    common = {"vocab_size": 26, "pad_token_id": 0, "bos_token_id": 4, "eos_token_id": 5}
    shared = {"num_key_value_heads": 2} if kind in ("mistral", "qwen2", "qwen3") else {}
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(kind, **OTHERS[kind], **common, **shared)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    for path in tiny_model(tokenizer).glob("token*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    write_manifest(tmp_path, kind="model")
    result = pruned(tmp_path, text, tmp_path / "out", "0.5", "wanda")
    expected = slow_model(tmp_path, sequences(tmp_path, text, **DRAW), "0.5", "wanda")
    assert {name for name in result if in_scope(family(tmp_path).place(name), "linear")} == set(expected)
    differing = sum(int(((result[name].numpy() == 0) != (weight == 0)).sum()) for name, weight in expected.items())
    assert differing <= 0.001 * sum(weight.size for weight in expected.values())


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "admm"])
def test_several_sparsities_are_the_same_as_one_by_one(
    method: str, tiny_model: Callable[[str], Path], text: Path, tmp_path: Path
) -> None:
    levels = ["0.5", "2of4", "0.25"]
    outputs = {level: tmp_path / "together" / level for level in levels}
    prune(tiny_model("llama"), outputs, method=method, scope="linear", calibration=DRAW, text=text)
    for level in levels:
        single = tmp_path / "single" / level
        pruned(tiny_model("llama"), text, single, level, method)
        for path in sorted(path for path in single.rglob("*") if path.is_file()):
            assert path.read_bytes() == (outputs[level] / path.relative_to(single)).read_bytes(), path


@pytest.mark.parametrize(
    ("kind", "scope"), [("bart", "encoder"), ("bart", "decoder"), ("bert", "mlp"), ("gpt2", "layers.0")]
)
def test_only_the_scope_is_touched(
    kind: str, scope: str, tiny_model: Callable[[str], Path], text: Path, tmp_path: Path
) -> None:
    model = tiny_model(kind)
    before, after, known = load(model), pruned(model, text, tmp_path, "0.5", "sparsegpt", scope), family(model)
    assert before.keys() == after.keys()
    for name, weight in after.items():
        inside = in_scope(known.place(name), scope)
        assert int((weight == 0).sum()) == weight.numel() // 2 if inside else torch.equal(weight, before[name])


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_error_of_every_matrix(kind: str, tiny_model: Callable[[str], Path], text: Path, tmp_path: Path) -> None:
    """Beside whole models, whose blocks before the matrix are pruned; six sequences of 32 tokens are one batch."""
    folder = tiny_model(kind)
    after = pruned(folder, text, tmp_path, "0.5", "sparsegpt")
    with (tmp_path / "sparsity.csv").open() as file:
        rows = list(csv.DictReader(file))
    for layer in (0, 1):
        model = load_model(transformers.AutoModelForCausalLM, folder)
        inputs: dict[str, torch.Tensor] = {}
        mine = {row["name"]: float(row["error"]) for row in rows if int(row["layer"]) == layer}
        modules = {name: model.get_submodule(name.removesuffix(".weight")) for name in mine}
        for row in rows:
            if int(row["layer"]) < layer:
                model.get_submodule(row["name"].removesuffix(".weight")).weight.data = after[row["name"]]
        for name, module in modules.items():
            module.register_forward_pre_hook(lambda _, given, name=name, inputs=inputs: inputs.update({name: given[0]}))
        with torch.no_grad():
            model(input_ids=sequences(folder, text, **DRAW))
        assert mine
        for name, error in mine.items():
            dense, small = modules[name].weight.data, after[name]
            if not family(folder).is_transposed(name):
                dense, small = dense.t(), small.t()
            expected = ((inputs[name] @ (small - dense)).norm() / (inputs[name] @ dense).norm()).item()
            assert error == pytest.approx(expected, rel=1e-3)


def test_what_is_told_of_it(tiny_model: Callable[[str], Path], text: Path, tmp_path: Path) -> None:
    after = pruned(tiny_model("llama"), text, tmp_path, "0.7", "wanda")
    with (tmp_path / "sparsity.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == sorted(row["name"] for row in rows)
    for row in rows:
        assert int(row["zeros"]) == int((after[row["name"]] == 0).sum()) == removed_of(int(row["size"]), "0.7")
        assert 0 < float(row["block_error"]) < 1
    facts = read_manifest(tmp_path / "model")["pruned"]
    assert facts["calibration"] == DRAW and facts["budgets"] == "uniform"
    again = tmp_path / "again"
    pruned(tiny_model("llama"), text, again, "0.7", "wanda")
    assert (again / "model/model.safetensors").read_bytes() == (tmp_path / "model/model.safetensors").read_bytes()


def test_a_model_in_float16_stays_so(tiny_model: Callable[[str], Path], text: Path, tmp_path: Path) -> None:
    for path in tiny_model("llama").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    halves = {name: weight.half() for name, weight in load(tiny_model("llama")).items()}
    save(tmp_path, halves, sparse=False)
    after = pruned(tmp_path, text, tmp_path / "out", "0.5", "sparsegpt")
    assert {weight.dtype for weight in after.values()} == {torch.float16}


def test_no_more_than_a_block_is_in_memory(
    tiny_model: Callable[[str], Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one block is loaded, every other one is on the device meta."""
    seen = []
    run = calibrate.Blocks._run

    def watched(self: Any) -> Any:
        seen.append(
            {name for name in self.names if any(not p.is_meta for p in self._net.get_submodule(name).parameters())}
        )
        return run(self)

    monkeypatch.setattr(calibrate.Blocks, "_run", watched)
    pruned(tiny_model("bart"), text, tmp_path, "0.5", "wanda")
    assert seen == [
        {name} for name in [f"{s}.layers.{n}" for s in ("encoder", "decoder") for n in (0, 1)] for _ in "12"
    ]


# Layer budgets.


def test_outliers_by_hand() -> None:
    weight = torch.tensor([[1.0, -1], [1, 100]])
    # Scores 2 1 2 100, mean 26.25: none is five times that; beside 20 small ones of another matrix one is.
    assert _owl.outliers([(weight, torch.tensor([4.0, 1]))]) == 0
    assert _owl.outliers([(weight, torch.tensor([4.0, 1])), (torch.ones(4, 5), torch.ones(5))]) == 1 / 24


def test_budgets_come_to_the_sparsity_asked_for() -> None:
    shares, sizes = {"a": 0.0, "b": 0.02, "c": 0.04}, {"a": 100, "b": 300, "c": 100}
    found = {layer: float(sparsity) for layer, sparsity in _owl.budgets(shares, sizes, "0.7").items()}
    assert found == pytest.approx({"a": 0.78, "b": 0.7, "c": 0.62})  # 0.16 between the extremes
    assert sum(found[layer] * sizes[layer] for layer in sizes) == pytest.approx(0.7 * 500)
    assert set(_owl.budgets(dict.fromkeys(sizes, 0.01), sizes, "0.5").values()) == {"0.500000"}


def test_layers_with_outliers_keep_more(tiny_model: Callable[[str], Path], text: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for path in tiny_model("llama").iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    tensors = load(model)
    name = next(name for name in tensors if "layers.1.mlp.up_proj" in name)
    tensors[name][::4, ::4] *= 50
    save(model, tensors, sparse=False)
    for method in ("wanda", "sparsegpt"):
        pruned(model, text, tmp_path / method, "0.6", method, budgets="owl")
        with (tmp_path / method / "sparsity.csv").open() as file:
            rows = list(csv.DictReader(file))
        levels = {row["layer"]: float(row["sparsity"]) for row in rows if row["part"] == "mlp"}
        assert levels["0"] == pytest.approx(0.68, abs=0.001) and levels["1"] == pytest.approx(0.52, abs=0.001)
        facts = read_manifest(tmp_path / method / "model")["pruned"]
        assert facts["budgets"] == "owl" and facts["measured_sparsity"] == pytest.approx(0.6, abs=1e-3)
    with pytest.raises(UserError, match=r"sparsity 0.97: budgets owl would remove 1.05\d* of layers.0"):
        pruned(model, text, tmp_path / "much", "0.97", "wanda", budgets="owl")
    assert not list((tmp_path / "much").rglob("*.safetensors"))


# The text.


@pytest.mark.parametrize(("kind", "frame"), [("llama", None), ("gpt2", None), ("bert", (2, 3)), ("bart", (4, 5))])
def test_sequences_are_pieces_of_the_text(
    kind: str, frame: tuple[int, int] | None, tiny_model: Callable[[str], Path], text: Path
) -> None:
    model = tiny_model(kind)
    drawn = sequences(model, text, **DRAW)
    assert drawn.shape == (6, 32) and drawn.dtype == torch.int64
    inner = drawn[:, 1:-1] if frame else drawn
    if frame:
        assert bool((drawn[:, 0] == frame[0]).all()) and bool((drawn[:, -1] == frame[1]).all())
    whole = load_tokenizer(model)("\n\n".join(tasks.load_text(text, "train")), add_special_tokens=False)["input_ids"]
    pieces = torch.tensor(whole[: len(whole) // inner.shape[1] * inner.shape[1]]).view(-1, inner.shape[1])
    found = [next(n for n, piece in enumerate(pieces) if torch.equal(piece, row)) for row in inner]
    assert len(set(found)) == 6
    assert torch.equal(drawn, sequences(model, text, **DRAW))
    assert not torch.equal(drawn, sequences(model, text, **DRAW | {"seed": 1}))


def test_what_a_text_must_be(tiny_model: Callable[[str], Path], text: Path, tmp_path: Path) -> None:
    model = tiny_model("llama")
    with pytest.raises(UserError, match=r"calibration: 43 sequences of 32 tokens .* words has text for 42; lower"):
        sequences(model, text, samples=43, sequence_length=32, seed=0)
    with pytest.raises(UserError, match=r"calibration.sequence_length: found 65, but llama.* allows 64 tokens"):
        sequences(model, text, samples=1, sequence_length=65, seed=0)
    with pytest.raises(UserError, match="method wanda: needs a calibration text"):
        prune(model, {"0.5": tmp_path / "out"}, method="wanda", scope="linear")
    with pytest.raises(UserError, match=r"no train.jsonl; the task has no such split"):
        pruned(model, tmp_path, tmp_path / "out", "0.5", "wanda")
    with pytest.raises(UserError, match=r"method sparsegpt prunes matrices of layers, tensor .* has none; choose"):
        pruned(model, text, tmp_path / "out", "0.5", "sparsegpt", "all")
    assert not (tmp_path / "out").exists()


def test_inputs_that_are_not_finite_are_named(tiny_model: Callable[[str], Path], text: Path, tmp_path: Path) -> None:
    for path in tiny_model("llama").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load(tmp_path)
    name = next(name for name in tensors if "layers.0.input_layernorm" in name)
    tensors[name][0] = float("nan")
    save(tmp_path, tensors, sparse=False)
    with pytest.raises(UserError, match=r"the inputs of model.layers.0.self_attn.q_proj.weight are not finite"):
        pruned(tmp_path, text, tmp_path / "out", "0.5", "wanda")
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_a_file_without_a_block_s_tensor(tiny_model: Callable[[str], Path], text: Path, tmp_path: Path) -> None:
    for path in tiny_model("llama").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load(tmp_path)
    del tensors["model.layers.1.input_layernorm.weight"]
    save(tmp_path, tensors, sparse=False)
    with pytest.raises(UserError, match=r"has no tensor for layers.1.input_layernorm.weight; download the model again"):
        pruned(tmp_path, text, tmp_path / "out", "0.5", "wanda")
