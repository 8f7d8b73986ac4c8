from pathlib import Path

import pytest

from llm_sparsity.jobs import failures

TRACEBACK = """Traceback (most recent call last):
  File "a.py", line 1, in <module>
    1 / 0
    ~~^~~

{last}
"""
KILLED = "it ended without a message"


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("10%|#\rerror: task.csv: no column 'label'\n", "task.csv: no column 'label'"),
        ("error: first\nmore\nerror: last\nmore\n", "last"),
        ("usage: finetune.py [-h]\nfinetune.py: error: no such option\n", "no such option"),
        (TRACEBACK.format(last="ZeroDivisionError: division by zero"), "ZeroDivisionError: division by zero"),
        (TRACEBACK.format(last="A: 1") + TRACEBACK.format(last="B: 2") + "bye\n", "B: 2"),
        (TRACEBACK.format(last="A: 1") + "error: then\n", "then"),
        ("error: then\n" + TRACEBACK.format(last="A: 1"), "A: 1"),
        ("10%|#\rSIGTERM: all is saved\n", "SIGTERM: all is saved"),
        ("10%|#\r20%|##", KILLED),
        ("", KILLED),
        ("x" * 50_000 + "\nerror: at the end", "at the end"),
        ("error: m\xfcll \N{PILE OF POO}", "m\xfcll \N{PILE OF POO}"),
    ],
)
def test_the_reason_of_a_failure_is_one_line(log: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "job.log"
    path.write_bytes(log.encode())
    (line,) = failures.failures([("prune m", [str(path)])])
    assert line.startswith(f"error: prune m: {reason}")
    assert line.endswith(f"; see {path}")
    assert "\n" not in line


def test_a_job_without_a_log(tmp_path: Path) -> None:
    (line,) = failures.failures([("prune m", [str(tmp_path / "none.log")])])
    assert "it did not start" in line
