"""Configuration files, the pool of each job, and the repairs of Parsl's executor."""

import shlex
from pathlib import Path
from string import Formatter

import pytest
from parsl.executors import HighThroughputExecutor

from snakemake_executor_plugin_parsl import ExecutorSettings, config, guard
from snakemake_executor_plugin_parsl.site import Site


def executor(label: str = "gpu") -> HighThroughputExecutor:
    return HighThroughputExecutor(label=label, address="127.0.0.1")


def test_without_pinned_devices_one_pool_takes_all_and_cpu_takes_no_gpu_job() -> None:
    assert config.route({"htex": executor("htex")}, 4) == "htex"
    assert config.route({"htex": executor("htex"), "cpu": executor("cpu")}, 0) == "cpu"
    assert config.route({"htex": executor("htex"), "cpu": executor("cpu")}, 1) == "htex"
    with pytest.raises(ValueError, match="no pool"):
        config.route({"cpu": executor("cpu")}, 1)


def test_an_interchange_is_tied_to_its_driver_and_removing_no_pilot_removes_none() -> None:
    pool = executor()
    pool.provider.parallelism = 0.5
    taken: list[int] = []
    pool.scale_in = lambda blocks, max_idletime=None: taken.append(blocks) or ["0"]
    config.repair(pool)
    assert guard.__file__ in pool.interchange_launch_cmd
    assert "guard.py pilot process_worker_pool.py" in pool.launch_cmd
    assert pool.scale_in(0, max_idletime=1.0) == []
    assert pool.scale_in(2, max_idletime=1.0) == ["0"]
    assert taken == [2]
    assert pool.provider.parallelism == 0.5


@pytest.mark.parametrize("folder", ["/my checkout", "/it's {mine}", "/plain"])
def test_pilots_start_from_a_checkout_of_any_name(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "__file__", f"{folder}/guard.py")
    pool = executor()
    config.repair(pool)
    fields = {name for _, name, _, _ in Formatter().parse(pool.launch_cmd) if name}
    command = pool.launch_cmd.format(**dict.fromkeys(fields, "0")).format(block_id=0)  # as Parsl does
    assert shlex.split(command)[:5] == ["python3", "-I", f"{folder}/guard.py", "pilot", "process_worker_pool.py"]


@pytest.mark.parametrize("folder", ["my study", "it's", "{mine}"])
def test_a_folder_that_batch_scripts_cannot_name_is_refused(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / folder)
    Path("pools.py").write_text(
        "from parsl.config import Config\nfrom parsl.executors import HighThroughputExecutor\n"
        "config = Config([HighThroughputExecutor(address='127.0.0.1')], run_dir='logs/parsl')\n"
    )
    with pytest.raises(ValueError, match="run in a folder without blanks"):
        config.load(Path("pools.py"), Site())


def test_slots_that_no_job_fits_are_asked_for_again() -> None:
    pool = executor()
    config.repair(pool)
    pool.tasks["one"] = pool.tasks["other"] = None
    assert pool.outstanding() == 2
    pool.unfit = 3
    assert pool.outstanding() == 5


def test_a_handler_of_errors_that_a_file_chose_stays() -> None:
    def mine(executor: object, status: object) -> None:
        pass

    chosen = HighThroughputExecutor(label="gpu", address="127.0.0.1", block_error_handler=mine)
    config.repair(chosen)
    assert chosen.block_error_handler is mine
    usual = executor()
    config.repair(usual)
    assert usual.block_error_handler is config.wait_for_pilots


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "sets no `config"),
        ("config = 3", "sets no `config"),
        ("account = physics\n", "pools.py:1: NameError: name 'physics' is not defined"),
        ("\nQUEUE = 'a', PILOTS = 1", "pools.py:2: SyntaxError: "),
        ("def config(site):\n    return site.nods", "pools.py:2: AttributeError: "),
        ("raise ValueError('queue: found 3')", "pools.py: queue: found 3"),
    ],
)
def test_a_mistake_in_a_file_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "pools.py"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"pools\.py") as error:
        config.load(file, Site())
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.py: not found"):
        config.load(tmp_path / "none.py", Site())


def test_a_function_gets_the_site_that_the_settings_describe(tmp_path: Path) -> None:
    file = tmp_path / "pools.py"
    file.write_text(
        "from parsl.config import Config\nfrom parsl.executors import HighThroughputExecutor\n"
        "def config(site):\n"
        "    assert (site.account, site.queue, site.pilots, site.nodes) == ('7', 'debug', 2, 3), site\n"
        "    return Config([HighThroughputExecutor(address='127.0.0.1')], run_dir=site.walltime)\n"
    )
    settings = ExecutorSettings(account="7", queue="debug", pilots="2", nodes=3, minutes="90")
    assert config.load(file, settings.site()).run_dir == "01:30:00"


@pytest.mark.parametrize("name", ["pilots", "nodes", "minutes"])
@pytest.mark.parametrize("wrong", ["1:00", "01:00:00", "an hour", "0", "-5", "1.5", ""])
def test_a_setting_that_is_no_whole_number_is_refused(name: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=f"^parsl-{name}: found '{wrong}'; write a whole number, such as 60$"):
        ExecutorSettings(**{name: wrong}).site()
