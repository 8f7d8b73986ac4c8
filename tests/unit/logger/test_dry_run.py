"""What a dry run says of the jobs that Snakemake lists."""

import json
from pathlib import Path

import pytest

from snakemake_logger_plugin_progress.dry_run import DryRun, why

SETTINGS = {"epochs": 1, "learning_rate": 0.0002, "distill": None, "schedule": {"end": 0.3}}


def changed(before: list[object], now: list[object]) -> str:
    """Snakemake's words for parameters that have changed, as its ParamsChange writes them."""
    sides = [",".join(repr(one if isinstance(one, str) else json.dumps(one)) for one in side) for side in (before, now)]
    return (
        "Params have changed since last execution: Union of exclusive params before and now across all output: "
        f"before: {sides[0]} now: {sides[1]} "
    )


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("Missing output files: a.json", "no result yet"),
        ("Missing output files: a.json; Input files updated by another job: b.json", "no result yet"),
        ("Input files updated by another job: b.json, c.json", "made from what is made again"),
        ("Updated input files: b.json, c.json", "changed: b.json, c.json"),
        ("Updated input files: b, c, d; Input files updated by another job: e", "changed: b, c and 1 more"),
        ("Forced execution", "forced"),
        ("Incomplete output files: a.json", "its last run did not end"),
        ("Set of input files has changed since last execution", "other input files than before"),
        ("Code has changed since last execution", "its command has changed"),
        ("a reason of a later version", "a reason of a later version"),
        (changed([SETTINGS], [SETTINGS | {"learning_rate": 3e-4}]), "learning_rate 0.0003 instead of 0.0002"),
        (changed([SETTINGS], [SETTINGS | {"schedule": {"end": 0.6}}]), "schedule.end 0.6 instead of 0.3"),
        (changed([SETTINGS], [SETTINGS | {"lora": 8}]), "lora 8 instead of none"),
        (changed([{"text": "it's"}], [{"text": 'a "b"'}]), 'text "a \\"b\\"" instead of "it\'s"'),
        (changed([{"note": "x" * 99}], [{"note": ""}]), f'note "" instead of "{"x" * 39}…'),
        (changed([{}], [SETTINGS]), "epochs, learning_rate and 1 more changed"),
        (changed(["0123456789abcdef"], ["fedcba9876543210"]), "its code has changed"),
        (changed(["0" * 64], ["1" * 64]), "files that the config names have changed"),
        (
            changed([SETTINGS, "0123456789abcdef"], [SETTINGS | {"epochs": 2}, "0123456789abcdee"]),
            "epochs 2 instead of 1, its code has changed",
        ),
    ],
)
def test_a_reason_is_told_in_a_few_words(reason: str, said: str) -> None:
    assert why(reason) == said


def test_settings_that_lie_in_a_file_are_compared_too(tmp_path: Path) -> None:
    for name, value in (("a", 1), ("b", 2)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"claims": value}))
    assert why(changed([f"@{tmp_path}/a.json"], [f"@{tmp_path}/b.json"])) == "claims 2 instead of 1"
    (tmp_path / "a.json").unlink()
    assert why(changed([f"@{tmp_path}/a.json"], [f"@{tmp_path}/b.json"])) == "claims 2 instead of none"


def test_jobs_of_one_rule_and_reason_are_one_line() -> None:
    listed = DryRun()
    assert listed.text() == ""
    for cell in ("b", "a", "c"):
        listed.add("prune", f"minilm/{cell}", "Missing output files: x")
    listed.add("plot", "", "Input files updated by another job: y")
    assert listed.text().splitlines() == [
        "4 jobs would run:",
        "",
        "jobs  rule   why                           cells",
        "   3  prune  no result yet                 minilm/a, minilm/b and 1 more",
        "   1  plot   made from what is made again",
        "",
        "-n -p lists every job with its files.",
    ]
