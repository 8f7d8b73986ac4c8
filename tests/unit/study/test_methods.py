import importlib.util
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from llm_sparsity.study import config, methods
from llm_sparsity.study.cells import Variant, expand
from llm_sparsity.study.methods import Chain
from llm_sparsity.study.sparsity import Sparsity

VALUES: dict[str, Any] = {
    "name": "test",
    "models": {"gpt2": {"architecture": "decoder", "source": {"folder": "gpt2"}}},
    "tasks": {"text": {"kind": "language-model", "source": {"folder": "text"}, "files": {"train": "a", "test": "b"}}},
    "calibration": {"task": "text", "samples": 8, "seeds": [0, 1]},
}


def study(**grid: Any) -> config.Config:
    whole = {"models": ["gpt2"], "methods": ["magnitude"], "scopes": ["linear"], "sparsities": [0.5], "tasks": ["text"]}
    return config.load({**VALUES, "study": [{**whole, **grid}]})


def test_a_chain_is_a_method_and_steps() -> None:
    chain = Chain("magnitude+swaps")
    assert (chain.method, chain.steps, chain.is_calibrated) == ("magnitude", ("swaps",), True)
    assert Chain("magnitude").steps == () and not Chain("magnitude").is_calibrated


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("swaps", "swaps repairs what a method leaves; put one before it, as in wanda+swaps"),
        ("wanda+swap", "found 'swap', which is not defined; did you mean 'swaps'?"),
        ("wanda+admm", "admm is a method, which comes first"),
        ("wanda+swaps+swaps", "swaps is given twice; remove one"),
        ("reconstruct", "reconstruct repairs what a method leaves; put one before it"),
        ("structured+reconstruct", "reconstruct keeps a mask, but structured shrinks tensors; remove one of them"),
        ("structured+swaps", "swaps keeps a mask, but structured shrinks tensors; remove one of them"),
        ("block+swaps", "swaps moves single weights, but block removes more; remove one of them"),
        ("int8+wanda", "wanda is a method, which comes first; write wanda+..."),
        ("int8+swaps", "int8 fixes the stored values, so nothing follows it; put it last"),
        ("wanda+int8+swaps", "int8 fixes the stored values, so nothing follows it; put it last"),
        ("int8+int4", "int8 fixes the stored values, so nothing follows it; put it last"),
        ("int16", "found 'int16', which is not defined; did you mean 'int8'?"),
        ("wanda+", "found '', which is not defined"),
        ("+swaps", "found '', which is not defined"),
        ("wanda +swaps", "found 'wanda ', which is not defined; did you mean 'wanda'?"),
    ],
)
def test_names_that_do_not_go_together_are_one_line(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        Chain(text)
    assert said in str(error.value)
    with pytest.raises(config.UserError) as refused:
        study(methods=[text])
    assert said in str(refused.value) and "study.0.methods" in str(refused.value)


def test_a_step_says_whether_it_moves_single_weights() -> None:
    """A step of one's own may repair what a method leaves without moving weights, after blocks as well."""
    assert methods.EXCHANGING == ("swaps",) and set(methods.EXCHANGING) <= set(methods.REPAIRING)


def test_a_variant_of_a_chain_is_its_name() -> None:
    variant = Variant("wanda+swaps", "linear", Sparsity("2of4"), 1)
    assert str(variant) == "wanda+swaps-linear-2of4-1"
    assert Variant.parse(str(variant)) == variant and variant.has_mask


def test_a_chain_uses_the_settings_of_its_parts() -> None:
    drawn = {"samples": 8, "sequence_length": 2048, "seed": 1}
    found = study(methods=["magnitude+swaps", "wanda+swaps"])
    assert found.prune_settings("magnitude+swaps", 1) == {"seed": 0, "min_density": 0.0, "calibration": drawn}
    assert found.prune_settings("wanda+swaps", 1) == {
        "min_density": 0.0, "layerwise": "uniform", "calibration": drawn,
    }  # fmt: skip
    names = [str(variant) for _, variant in found.cells().variants]
    assert names[1:3] == ["magnitude+swaps-linear-0.5", "magnitude+swaps-linear-0.5-1"]
    assert found.wanted_tasks() == ["text"]


def test_steps_need_calibration_text_and_matrices_of_layers() -> None:
    with pytest.raises(config.UserError, match=r"magnitude\+swaps needs calibration text; add calibration"):
        config.load(
            {**VALUES, "calibration": None, "study": [study(methods=["magnitude+swaps"]).study[0].model_dump()]}
        )
    with pytest.raises(config.UserError, match=r"scopes: all holds more than matrices of layers, which magnitude\+swa"):
        study(methods=["magnitude+swaps"], scopes=["all"])


def test_only_the_own_parts_count_as_code() -> None:
    modules = [name.removeprefix("llm_sparsity.pruning.") for name in Chain("magnitude+swaps").modules]
    assert modules == ["methods.magnitude", "steps.swaps", "calibrated"]
    modules = [name.removeprefix("llm_sparsity.pruning.") for name in Chain("magnitude+reconstruct+int8").modules]
    assert {"steps.reconstruct", "reconstruction", "steps.int8", "quantization"} < set(modules)
    assert not {"steps.swaps", "methods.wanda"} & set(modules)
    assert Chain("magnitude").modules == ["llm_sparsity.pruning.methods.magnitude"]


def test_cells_know_chains() -> None:
    grid = {**study().grids()[0], "methods": ["wanda+swaps"], "tasks": []}
    assert [str(variant) for _, variant in expand([grid], {}).variants] == ["dense", "wanda+swaps-linear-0.5"]


def test_a_quantised_model_is_one_variant_of_sparsity_0() -> None:
    found = study(methods=["int8", "magnitude+int8"], sparsities=[0, 0.5, 0.9], scopes=["linear"])
    names = [str(variant) for _, variant in found.cells().variants]
    assert names == ["dense", "int8-linear-0", "magnitude+int8-linear-0.5", "magnitude+int8-linear-0.9"]
    assert Variant.parse("int8-linear-0") == Variant("int8", "linear") and not Variant("int8", "linear").is_dense
    assert found.prune_settings("int8") == {}
    assert Chain("int8").is_quantised and Chain("magnitude+int8").is_quantised and not Chain("magnitude").is_quantised
    assert Chain("int8").modules == [f"llm_sparsity.pruning.{name}" for name in ("steps.int8", "quantization")]
    assert str(study(methods=["int4"], sparsities=[0], scopes=["all"]).cells().variants[1][1]) == "int4-all-0"


def test_quantised_models_are_not_trained() -> None:
    text = {**VALUES["tasks"]["text"], "finetune": {}}
    grid = {"models": ["gpt2"], "methods": ["magnitude+int8"], "scopes": ["linear"], "sparsities": [0.5]}
    with pytest.raises(config.UserError, match=r"magnitude\+int8 stores whole numbers.* task text is; give .* a grid"):
        config.load({**VALUES, "tasks": {"text": text}, "study": [{**grid, "tasks": ["text"]}]})


@pytest.fixture
def own(root: Path, tmp_path: Path) -> Callable[[str, str], ModuleType]:
    """`own(name, source)` -> this module, in a library that has such a method too."""

    def read(name: str, source: str) -> ModuleType:
        for folder in ("methods", "steps"):
            shutil.copytree(root / "workflow/llm_sparsity/pruning" / folder, tmp_path / "pruning" / folder)
        (tmp_path / f"pruning/methods/{name}.py").write_text(source)
        (tmp_path / "study").mkdir()
        copy = shutil.copy(root / "workflow/llm_sparsity/study/methods.py", tmp_path / "study")
        spec = importlib.util.spec_from_file_location("methods_with_own", copy)
        assert spec is not None and spec.loader is not None
        module = sys.modules["methods_with_own"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return read


@pytest.mark.parametrize(
    "source",
    [
        "from llm_sparsity.pruning.methods.wanda import observe, prepare\nGRANULARITY = (1,1)\nUPDATES: bool = True\n",
        "from .wanda import inputs as observe\nGRANULARITY: tuple[int, int] = (1, 1)\nUPDATES=True  # all\n",
        "def observe (inputs): ...\nGRANULARITY = 1, 1\nUPDATES = (True)\n",
        "observe = len\nGRANULARITY  = (1, 1)\nUPDATES = True",
    ],
)
def test_what_a_method_is_does_not_depend_on_how_it_is_written(
    source: str, own: Callable[[str, str], ModuleType]
) -> None:
    found = own("mine_2", source)
    assert found.Chain("mine_2+swaps").method == "mine_2"
    assert "mine_2" in set(found.CALIBRATED) & set(found.UPDATING) & set(found.SINGLE)


@pytest.mark.parametrize("name", ["my-method", "RIA", "2nd", "größe"])
def test_a_method_is_named_as_a_part_of_a_folder(name: str, own: Callable[[str, str], ModuleType]) -> None:
    with pytest.raises(ValueError, match=rf"^found '{name}', which becomes a part .* rename {name}.py: a small letter"):
        own(name, "GRANULARITY = (1, 1)\n").Chain(name)
