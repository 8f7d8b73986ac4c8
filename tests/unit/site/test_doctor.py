"""The doctor, before the stand-in for PBS and on this machine; with a real Slurm in tests/workflow/test_slurm.py."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from llm_sparsity.cli.main import main
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.jobs.process import this_process
from llm_sparsity.site import doctor, machine, pools, slurm
from llm_sparsity.site.check import Line, ask, minutes
from llm_sparsity.site.place import Place, place
from llm_sparsity.site.sources import missing, sources
from llm_sparsity.study import config
from tests.tiny import MOOD_STUDY


class Site:
    """A folder with a study and a profile for the stand-in, in which a check can be spoilt."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder, self.profile, self.state = folder, folder / "polaris", folder / "pbs"
        for made in (self.state, folder / "bin", folder / "model", folder / "task", folder / "tmp"):
            made.mkdir()
        self.table = self.profile / "queues.csv"
        shutil.copytree(root / "profiles/polaris", self.profile)
        program = root / "snakemake-executor-plugin-parsl/tests/standin_pbs.py"
        for name in ("qsub", "qstat", "qdel"):
            self.tool(name, f'exec {sys.executable} -I {program} {name} "$@"')
        self.edit("pools.py", 'INTERFACE = "hsn0"', 'INTERFACE = "lo"')
        self.edit(
            "pools.py",
            "source {shlex.quote(str(Path.cwd()))}/.venv/bin/activate",
            f"export PATH={Path(sys.executable).parent}:$PATH",
        )
        self.edit("config.yaml", "profiles/polaris/pools.py", str(self.profile / "pools.py"))
        self.edit("config.yaml", "# parsl-account: PROJECT", "parsl-account: p")
        (folder / "config.yaml").write_text(yaml.safe_dump(MOOD_STUDY))

    def tool(self, name: str, script: str) -> None:
        (self.folder / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.folder / "bin" / name).chmod(0o755)

    def edit(self, file: str, before: str, after: str) -> None:
        text = (self.profile / file).read_text()
        assert before in text
        (self.profile / file).write_text(text.replace(before, after))

    def place(self) -> Place:
        return place(config.load(MOOD_STUDY), self.profile)

    def lines(self, *, submits: bool = False) -> dict[str, Line]:
        return {line.subject: line for line in doctor.examine(self.place(), submits=submits)}


@pytest.fixture
def site(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    made = Site(tmp_path, root)
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "STANDIN_PBS": str(made.state),
        "STANDIN_QUEUES": str(made.table), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    # Its versions are those of this checkout's lock; importing torch for every test would take minutes.
    monkeypatch.setattr(machine, "IMPORTED", "print('torch')")
    monkeypatch.setattr(machine, "_installed", dict(_pins(root)).__getitem__)
    roomy = SimpleNamespace(free=10**12)  # whatever the disk of the machine that runs the tests
    monkeypatch.setattr(machine, "shutil", SimpleNamespace(**vars(shutil) | {"disk_usage": lambda _: roomy}))
    return made


def _pins(root: Path) -> list[tuple[str, str]]:
    return re.findall(r"^([\w.-]+)==([\w.]+)", (root / "envs/requirements.txt").read_text(), re.MULTILINE)


def test_a_healthy_site_has_nothing_to_do(site: Site) -> None:
    before = sorted(path for path in site.folder.rglob("*") if site.state not in path.parents)
    lines = site.lines()
    assert [line for line in lines.values() if line.fix] == []
    assert lines["scheduler"].found == "PBS 23.06.06 answers; queues: 6"
    assert lines["queue"].found == "debug-scaling takes pilots of 5 nodes for 01:00:00"
    assert lines["slots"].found == "jobs use the pools gpu"
    assert lines["account"].state == "--", "PBS does not tell before a job is submitted"
    after = sorted(path for path in site.folder.rglob("*") if site.state not in path.parents)
    assert after == before, "nothing is written"


BROKEN: dict[str, tuple[str, Callable[[Site], object], str, str]] = {
    "no PBS": ("scheduler", lambda site: (site.folder / "bin/qstat").unlink(), "qstat: not found", "login node"),
    "server down": ("scheduler", lambda site: (site.state / "down").touch(), "cannot connect to server", "repeat"),
    "no account": (
        "pools", lambda site: site.edit("config.yaml", "parsl-account: p", "# none"),
        "parsl-account: missing", "correct it",
    ),
    "stopped queue": (
        "queue", lambda site: (site.state / "stopped-debug-scaling").touch(), "debug-scaling is not started", "wait",
    ),
    "queue gone": (
        "queue", lambda site: site.tool("qstat", "echo 'Queue: other\n    started = True'"), "no such queue", "other",
    ),
    "queue changed": (
        "queue", lambda site: site.tool("qstat", "echo 'Queue: debug-scaling\n    resources_max.nodect = 4'"),
        "takes 0 to 4 nodes, pilots have 5", "parsl-nodes",
    ),
    "fewer jobs": (
        "queue", lambda site: (
            site.edit("config.yaml", "parsl-pilots: 1", "parsl-pilots: 2"),
            site.edit("queues.csv", "debug-scaling,4,1,10,5,60,1", "debug-scaling,4,1,10,5,60,2"),
            site.tool("qstat", "echo 'Queue: debug-scaling\n    max_run = [u:PBS_GENERIC=1]'"),
        ), "allows 1 at once", "parsl-pilots to 1",
    ),
    "shared cores": (
        "affinity", lambda site: site.edit("pools.py", "16-23,48-55", "24-31,48-55"), "workers share cores", "pool gpu",
    ),
    "no such cores": (
        "affinity", lambda site: site.edit("pools.py", "list:24-31,56-63", "list:24-31,56-64"), "core 64", "pool gpu",
    ),
    "no environment": (
        "activation",
        lambda site: site.edit("pools.py", "export PATH=", "source /absent/activate\\nexport PATH="),
        "/absent/activate", "./run -n",
    ),
    "model gone": ("sources", lambda site: (site.folder / "model").rmdir(), "which is no folder", "correct the path"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_named_with_what_to_do(case: str, site: Site) -> None:
    subject, spoil, found, fix = BROKEN[case]
    spoil(site)
    line = site.lines()[subject]
    assert line.state == "TO DO", line
    assert found in line.found
    assert fix in line.fix


def test_the_machine(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    here = site.place()
    monkeypatch.setattr(machine, "TASKS", 10**9)
    monkeypatch.setattr(machine, "_control_group", lambda: 100)
    assert "100 allowed" in machine.threads(here).found
    assert machine.threads(here).state == "TO DO"
    monkeypatch.setattr(machine, "TASKS", 0)
    monkeypatch.setattr(machine, "_control_group", lambda: 0)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert machine.threads(here).fix == "export OMP_NUM_THREADS=1"
    monkeypatch.setattr(machine, "SKEW", -1)
    assert machine.clock(here).state == "TO DO"
    monkeypatch.setattr(machine.tempfile, "gettempdir", lambda: str(site.folder / ("x" * 90)))
    (site.folder / ("x" * 90)).mkdir()
    assert machine.temporary(here).fix == "export TMPDIR=/tmp"
    site.tool("lfs", f"[ $4 = {os.getuid()} ] && echo '      . 52428000* 0 52428800 - 1 0 0 -'")
    assert "0 GB left of your quota" in machine.disk(here).found
    assert machine.disk(here).state == "TO DO"
    used = '[ "$1 $2 $3 $4" = "quota -q -p 7" ] && echo "      . 2048 0 1048576 - 1 0 0 -"'
    site.tool("lfs", f'[ "$*" = "project -d ." ] && echo "    7 P ." || ({used})')
    assert "1 GB left of the project's quota" in machine.disk(here).found
    assert "GB for each run at work" in machine.disk(here).found
    locks = site.folder / ".snakemake/locks"
    locks.mkdir(parents=True)
    (locks / f"owner-{os.getpid()}").write_text(this_process())
    assert f"process {os.getpid()}" in machine.other_driver(here).found
    monkeypatch.setattr(machine, "_installed", lambda name: "0.1" if name == "torch" else "missing")
    assert re.search(r"missing, not [\d.]+.* and \d+ others", machine.environment(here).found)


def test_file_systems_that_nodes_share() -> None:
    mounts = "overlay / overlay rw 0 0\nx /lus/eagle lustre rw 0 0\nshm /dev/shm tmpfs rw 0 0\n"
    assert machine._file_system(Path("/lus/eagle/projects/p"), mounts) == ("lustre", "/lus/eagle")
    assert machine._file_system(Path("/lus/eagles"), mounts) == ("overlay", "/")


def test_a_job_of_five_minutes(site: Site) -> None:
    lines = site.lines(submits=True)
    assert lines["job"].found == "accepted; nodes share this folder, as its file appeared here"
    assert not {"account", "folder"} & set(lines), "the job has answered them"
    assert lines["node's Python"].state == "OK"
    assert lines["node's TMPDIR"].found == "/tmp"
    assert "walltime=00:05:00" in next(site.state.glob("*.sh")).read_text()
    site.edit("config.yaml", "parsl-queue: debug-scaling", "parsl-queue: debug")
    site.edit("config.yaml", "parsl-nodes: 5", "parsl-nodes: 1")
    (site.state / "limit").write_text("0")
    assert "would exceed" in site.lines(submits=True)["job"].found


@pytest.mark.slow
def test_a_laptop_without_a_profile(site: Site, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the command: its screen without colours, and its exit status."""
    environment = os.environ | {"PYTHONPATH": str(root / "workflow"), "PATH": os.environ["PATH"]}
    words = [sys.executable, "-m", "llm_sparsity", "doctor"]
    done = subprocess.run(words, env=environment, cwd=site.folder, text=True, capture_output=True, check=False)
    assert done.stdout.startswith("Doctor: study tiny, no profile: this machine, on ")
    assert "scheduler" not in done.stdout
    assert "\033" not in done.stdout
    assert done.returncode == (0 if done.stdout.endswith("Nothing to do.\n") else 1), done.stderr
    (site.folder / "task").rmdir()
    with pytest.raises(SystemExit, match=r"^1$"):
        main(["doctor"])
    assert "which is no folder" in capsys.readouterr().out


def test_a_profile_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.yaml"):
        place(config.load(MOOD_STUDY), tmp_path)


PROFILES = {
    "mappings": "default-resources:\n  slurm_account: x\nresources:\n  gpu: 4\nset-threads: {finetune: 8}\n",
    "lists": "default-resources: [slurm_account=x]\nresources: ['gpu=4']\nset-threads: [finetune=8]\n",
    "single words": "default-resources: slurm_account=x\nresources: gpu=4\nset-threads: finetune=8\n",
    "expressions": "__use_yte__: true\ndefault-resources:\n  slurm_account: '?chr(120)'\nresources:\n  gpu: ?2 + 2\n"
    "set-threads: {finetune: 8}\n",
}


@pytest.mark.parametrize("written", PROFILES)
def test_a_profile_is_read_as_snakemake_reads_it(written: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"executor: slurm\n{PROFILES[written]}")
    found = place(config.load(MOOD_STUDY), tmp_path)
    assert (found.batch, found.resource("slurm_account"), found.resource("slurm_partition")) == ("Slurm", "x", "")
    assert (found.numbers("resources"), found.numbers("set-threads")) == ({"gpu": 4}, {"finetune": 8})
    assert slurm._needs(found).cores == 8


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "no profile"), (b"- a", "no profile"), (b"a: [", "no profile"), (b"a: \xff", "no profile"),
        (b"resources: gpu", "resources: found 'gpu'; write NAME=VALUE"),
        (b"resources: [gpu=x, mem=1GB]", "resources: found 'gpu=x'; write a whole number"),
        (b"set-resources: {finetune: 4}", "no profile"),
    ],
)  # fmt: skip
def test_a_profile_with_a_mistake_is_one_line(text: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(text)
    with pytest.raises(UserError, match=said) as error:
        machine.gpus(place(config.load(MOOD_STUDY), tmp_path))
    assert "\n" not in str(error.value)


POOLS = """
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider, PBSProProvider, SlurmProvider  # PBSProvider of the plugin is not used

config = Config([HighThroughputExecutor(address="127.0.0.1", provider={provider})])
"""


@pytest.mark.parametrize(
    ("provider", "batch"),
    [
        ("SlurmProvider()", "Slurm"), ("PBSProProvider()", "PBS"), ("LocalProvider()", ""),
        ("type('Mine', (SlurmProvider,), {})()", "Slurm"),
    ],
)  # fmt: skip
def test_the_batch_system_is_that_of_the_pools(provider: str, batch: str, tmp_path: Path) -> None:
    (tmp_path / "pools.py").write_text(POOLS.replace("{provider}", provider))
    (tmp_path / "config.yaml").write_text("executor: parsl\nparsl-config: pools.py\n")  # beside the profile
    found = place(config.load(MOOD_STUDY), tmp_path)
    assert (found.batch, found.trouble) == (batch, "")


def test_the_batch_system_of_pools_that_cannot_be_made_is_that_of_their_text(tmp_path: Path) -> None:
    (tmp_path / "pools.py").write_text("from parsl.providers import SlurmProvider\nraise ValueError('no account')\n")
    (tmp_path / "config.yaml").write_text("executor: parsl\nparsl-config: pools.py\n")
    found = place(config.load(MOOD_STUDY), tmp_path)
    assert found.batch == "Slurm"
    assert found.trouble.endswith("no account")


def test_a_run_and_the_doctor_say_the_same_of_a_folder_that_is_gone(site: Site) -> None:
    for folder in ("models/bert", "tasks/mood"):
        (site.folder / "resources" / folder).mkdir(parents=True)
        (site.folder / "resources" / folder / "manifest.json").write_text("{}")
    study = config.load(MOOD_STUDY)
    here = Place(study, [])
    assert sources(here).state == "OK"
    (site.folder / "model").rmdir()
    (gone,) = missing(study)
    assert str(gone).startswith("models.bert.source.folder: found 'model', which is no folder; correct the path, or")
    assert gone.reason in sources(here).found, "though it has been downloaded"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ({"hub": "a/b", "revision": "0" * 40}, "models.bert.source.hub: "),
        ({"package": "a==1", "sha256": "0" * 64, "path": "a"}, "models.bert.source.package: it does not answer"),
    ],
)
def test_what_is_downloaded_again_has_to_be_available(
    source: dict[str, str], reason: str, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Snakemake removes what it makes again first."""
    monkeypatch.setattr("llm_sparsity.site.sources._registry", lambda package: "it does not answer")
    values = copy.deepcopy(MOOD_STUDY)
    values["models"]["bert"]["source"] = source
    study = config.load(values)
    manifest = site.folder / "resources/models/bert/manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}")
    assert not list(missing(study, registries=True))
    (found,) = missing(study, pending=[("model", "bert")])
    assert str(found).startswith(reason)


def test_an_environment_in_a_folder_with_a_blank_is_found(site: Site) -> None:
    script = site.folder / "my checkout/activate"
    script.parent.mkdir()
    script.touch()
    site.edit("pools.py", "export PATH=", f"source '{script}'\\nexport PATH=")
    assert pools.activation(site.place()) == Line("activation", str(script))


def test_commands_that_do_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_sparsity.site.check.SECONDS", 0.1)
    assert (ask("sleep", "9").code, ask("no-such-command").code) == (124, 127)
    assert ask("sh", "-c", "echo a >&2; echo b >&2; exit 3").reason == "b"


def test_walltimes() -> None:
    texts = ["1-02:03:04", "01:00:00", "30:00", "infinite"]
    assert [minutes(text) for text in texts] == [1563 + 4 / 60, 60, 30, float("inf")]


def test_partitions(site: Site) -> None:
    """As `sinfo` of Slurm 22.05 and of newer releases prints them."""
    site.tool(
        "sinfo", "echo 'cpu*|up|infinite|40|(null)|128+|257000+\ngpu|up|1-00:00:00|8|gpu:a100:4(S:0-1)|64|515000'"
    )
    first, second = slurm._partitions()
    assert (first.name, first.default, first.minutes, first.gpus, first.memory) == (
        "cpu",
        True,
        float("inf"),
        0,
        257_000,
    )
    assert (second.name, second.default, second.minutes, second.gpus) == ("gpu", False, 1440, 4)
    needs = slurm.Needs(minutes=30, nodes=1, gpus=1, cores=8, memory=4000)
    assert first.lacks(needs) == "has 0 GPUs a node, a job asks for 1"
    assert second.lacks(needs) == ""


def test_left_over_jobs_of_other_folders_and_rules_stay(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    listed = site.folder / "listed"
    rows = [
        ("1", site.folder, "rule_prune_wildcards_bert_x"), ("2", "/elsewhere", "rule_prune_wildcards_bert_x"),
        ("3", site.folder, "rule_prune_wildcards_bert_y"), ("4", site.folder, "(null)"),
    ]  # fmt: skip
    listed.write_text("".join("|".join(map(str, row)) + "\n" for row in rows))
    site.tool("squeue", f"cat {listed}")
    site.tool("scancel", f'echo "$@" > cancelled; grep -v "^$1|" {listed} > rest; mv rest {listed}')
    slurm.cancel_left_over([("prune", ["bert", "x"]), ("weights", ["bert", "dense"])])
    assert (site.folder / "cancelled").read_text() == "1\n"
    assert capsys.readouterr().err == "slurm: cancelling jobs of a killed driver: 1\n"
    site.tool("scancel", "exit 1")
    with pytest.raises(UserError, match="3 do not end"):
        slurm.cancel_left_over([("prune", ["bert", "y"])], patience=0)


def test_colours_only_on_a_terminal(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    here, lines = site.place(), [Line("queue", "gone", "choose another"), Line("clock", "agrees")]
    assert "\033" not in doctor.screen(here, lines)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\033[31mTO DO" in doctor.screen(here, lines)
    assert json.dumps(doctor.screen(here, lines)).count("u001b[0m") == 2
