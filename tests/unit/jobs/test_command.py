import errno
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from snakemake.shell import shell
from snakemake.utils import format as snakemake_format

from llm_sparsity.jobs.command import arguments, parse_and_lease, quoted, run
from llm_sparsity.jobs.errors import UserError, is_out_of_memory, storage_message
from llm_sparsity.storage.files import write_json


def test_threads_and_gpus_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(sys, "argv", ["script", "--threads", "1", "--gpus", "2", "--settings", '{"seed": 1}'])
    threads = torch.get_num_threads()
    try:
        args = parse_and_lease(arguments("A script."))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    assert args.settings == {"seed": 1}
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize(("text", "message"), [("{", "not JSON"), ("[1]", "expected a JSON object")])
def test_settings_that_are_no_object(text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arguments("A script.").parse_args(["--settings", text])
    assert message in capsys.readouterr().err


ODD = [
    "it's", "{wildcards}", "{{", "$HOME", "`id`", "$(id)", 'a"b', "a\nb", "-x", "--", " a  b ", "日本", "%s", "a\\",
]  # fmt: skip


@pytest.mark.parametrize("text", ODD)
def test_odd_text_reaches_a_program_as_it_is(text: str, tmp_path: Path) -> None:
    """By `quoted`, and by the format `:q` of rules, here in the shell that runs jobs."""
    heard = tmp_path / "heard.json"
    code = "import json, sys; json.dump(sys.argv[2:], open(sys.argv[1], 'w'))"
    program = f"{quoted(sys.executable)} -c {quoted(code)} {quoted(heard)}"
    shell(f"{program} {quoted(text)} {{text:q}}")
    assert json.loads(heard.read_text()) == [text, text]


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
@example("{a!r:>{b}} ' \" $ \n -")
def test_any_text_is_one_word(text: str) -> None:
    assert shlex.split(snakemake_format(quoted(text))) == [text]
    assert shlex.split(snakemake_format("{text:q}", text=text)) == ([text] if text else [])  # no value, no word


def test_settings_may_lie_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "it's a file.json"
    write_json(path, {"labels": ["ü"] * 50_000})
    assert arguments("A script.").parse_args(["--settings", f"@{path}"]).settings == {"labels": ["ü"] * 50_000}
    with pytest.raises(SystemExit):
        arguments("A script.").parse_args(["--settings", f"@{path}.gone"])
    assert "No such file or directory; repeat the snakemake command" in capsys.readouterr().err


def test_a_user_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise UserError("task.csv: no column 'label'; found: text")

    with pytest.raises(SystemExit) as stop:
        run(main)
    assert stop.value.code == "error: task.csv: no column 'label'; found: text"


@pytest.mark.parametrize(
    ("number", "message"),
    [(errno.ENOSPC, "no space is left"), (errno.EROFS, "read-only"), (errno.EACCES, "permission")],
)
def test_a_storage_error_is_one_line(
    number: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"kept": True})

    def refuse(*_: object) -> None:
        raise OSError(number, "refused", str(path))

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(SystemExit, match=message):
        run(lambda: write_json(path, {"kept": False}))
    assert json.loads(path.read_text()) == {"kept": True}


def test_a_full_gpu_is_one_line() -> None:
    def main() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")

    with pytest.raises(SystemExit, match=r"error: the memory is full; lower .*Tried to allocate 2 GiB"):
        run(main)


@pytest.mark.parametrize(
    "error", [RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), MemoryError("Unable to allocate")]
)
def test_a_full_machine_is_one_line(error: Exception) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit, match=r"error: the memory is full; lower "):
        run(main)


@pytest.mark.parametrize(
    "error", [torch.AcceleratorError("CUDA error: device-side assert triggered"), RecursionError()]
)
def test_not_every_runtime_error_is_a_full_memory(error: Exception) -> None:
    assert isinstance(error, RuntimeError)
    assert not is_out_of_memory(error)


def test_other_errors_keep_their_traceback() -> None:
    assert storage_message(OSError(errno.ECONNRESET, "reset")) is None
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 // 0)  # type: ignore[arg-type, return-value]


def test_a_closed_pipe_ends_a_script_quietly(root: Path) -> None:
    """`llm-sparsity plan STUDY | head -1`"""
    code = "from llm_sparsity.jobs.command import run; run(lambda: [print('line ' * 50) for _ in range(2000)])"
    done = subprocess.run(
        ["sh", "-c", f'{shlex.quote(sys.executable)} -c "{code}" | head -1'],
        env={"PYTHONPATH": str(root / "workflow")}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""
