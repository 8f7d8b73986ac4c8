import json
from pathlib import Path

import pytest
import yaml

from llm_sparsity.study import config, plan
from llm_sparsity.study.plan import Job, Queue

SMALL = [25.0] * 18 + [3.0] * 18
LARGE = [25.0] * 150 + [3.0] * 150 + [12.0] * 200
NODE = Queue("any", 1, 100, 5, 6000, 1, "")


def work(minutes: list[float], gpus: int = 1) -> list[Job]:
    return [Job("finetune", gpus, each, False, 0, False) for each in minutes]


@pytest.fixture
def study(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> config.Config:
    """The report's study, in a folder in which nothing has run."""
    monkeypatch.chdir(tmp_path)
    plan._model_size.cache_clear()
    plan._measured.cache_clear()
    return config.load(yaml.safe_load((root / "config.yaml").read_text()))


@pytest.fixture
def site(root: Path) -> list[Queue]:
    return plan.queues(root / "profiles/polaris/queues.csv")


@pytest.mark.parametrize(
    ("minutes", "nodes", "took", "node_hours", "utilisation"), [(SMALL, 5, 30, 2.5, 0.84), (LARGE, 20, 89, 29.7, 0.93)]
)
def test_anchors(minutes: list[float], nodes: int, took: float, node_hours: float, utilisation: float) -> None:
    way = plan.option(NODE, 1, nodes, work(minutes))
    assert way.minutes == pytest.approx(took, abs=0.5)
    assert way.node_hours == pytest.approx(node_hours, abs=0.1)
    assert way.utilisation == pytest.approx(utilisation, abs=0.01)


def test_the_reports_runs_are_told_five_nodes_of_debug_scaling(site: list[Queue]) -> None:
    way = plan.recommend(plan.options(site, work(SMALL)))
    assert way is not None
    assert (way.queue.queue, way.jobs, way.nodes) == ("debug-scaling", 1, 5)


def test_hundreds_of_runs_are_told_one_node_jobs_that_can_be_preempted(site: list[Queue]) -> None:
    way = plan.recommend(plan.options(site, work(LARGE)))
    assert way is not None
    assert (way.queue.queue, way.jobs, way.nodes) == ("preemptable", 20, 1)


def test_a_few_short_runs_need_no_more_than_debug(site: list[Queue]) -> None:
    way = plan.recommend(plan.options(site, work([3.0] * 6)))
    assert way is not None
    assert way.queue.queue == "debug"
    assert way.queue.min_minutes <= way.walltime <= way.queue.max_minutes


def test_a_walltime_is_one_that_the_queue_takes(site: list[Queue]) -> None:
    for minutes in ([0.1], SMALL, LARGE):
        for way in plan.options(site, work(minutes)):
            assert way.queue.min_minutes <= way.walltime <= way.queue.max_minutes
            assert way.minutes < way.walltime
            assert way.queue.min_nodes <= way.nodes <= way.queue.max_nodes


def test_a_job_of_a_whole_node_keeps_all_its_slots() -> None:
    overhead = plan.PILOT_MINUTES + plan.JOB_MINUTES
    assert plan.pack(work([10.0], gpus=4), 1) == pytest.approx(10 + overhead)
    assert plan.pack(work([10.0, 10.0], gpus=4), 1) == pytest.approx(20 + overhead + plan.JOB_MINUTES)
    assert plan.gpu_hours(work([60.0], gpus=4)) == 4
    both = [*work([10.0], gpus=4), *work([5.0])]
    assert plan.pack(both, 1) > plan.pack(both, 2)


def test_a_job_over_several_nodes_keeps_them_all_and_decides_how_many_a_batch_job_has(site: list[Queue]) -> None:
    wide = work([60.0], gpus=8)
    overhead = plan.PILOT_MINUTES + plan.JOB_MINUTES
    assert wide[0].nodes == 2
    assert plan.gpu_hours(wide) == 8
    assert plan.pack(wide, 2) == pytest.approx(60 + overhead)
    assert plan.pack(wide * 2, 3) == plan.pack(wide * 2, 2), "the third node is of no use"
    assert plan.pack(wide * 2, 4) == plan.pack(wide, 2)
    ways = {way.queue.queue: way for way in plan.options(site, [*work([30.0] * 6, gpus=8), *work([3.0] * 20)])}
    assert {way.nodes for way in ways.values()} == {2}
    assert "prod" not in ways, "it starts at 10 nodes"
    assert ways["preemptable"].jobs > 1
    best = plan.recommend(plan.options(site, work([10.0], gpus=8)))
    assert best is not None
    assert (best.queue.queue, best.jobs, best.nodes) == ("debug", 1, 2)
    assert best.node_hours == pytest.approx(2 * (10 + overhead) / 60)
    assert plan.recommend(plan.options(site, work([10.0], gpus=4 * 600))) is None
    assert "lower `gpus`" in plan.advice(None, 600)


def test_runs_of_two_widths_need_two_studies(study: config.Config, site: list[Queue]) -> None:
    models = dict(study.models)
    for model, gpus in (("gpt2", 8), ("bart-base", 16)):
        models[model] = models[model].model_copy(update={"gpus": gpus})
    table = plan.table(study.model_copy(update={"models": models}), site)
    assert "gpus: some runs take 2 nodes and others 4 nodes, but batch jobs are of one size" in table
    assert "Recommended" not in table


def test_the_default_study_is_counted(study: config.Config) -> None:
    jobs = plan.jobs(study)
    counts = {stage: sum(job.stage == stage for job in jobs) for stage in {job.stage for job in jobs}}
    assert counts == {"download": 5, "prune": 15, "weights": 18, "measure": 18, "finetune": 66}
    assert not any(job.done or job.measured for job in jobs)
    assert plan.minutes(study, "finetune", "gpt2", task="sst2")[0] == pytest.approx(25, abs=0.5)
    assert plan.minutes(study, "finetune", "gpt2", task="mrpc")[0] == pytest.approx(3, abs=0.5)


def test_a_models_size_is_what_the_config_says_until_it_is_here(study: config.Config) -> None:
    models = dict(study.models)
    models["gpt2"] = models["gpt2"].model_copy(update={"parameters": 1.25e9})
    large = study.model_copy(update={"models": models})
    assert plan.minutes(large, "prune", "gpt2") == (10 * plan.ASSUMED["prune"], False)
    assert plan.model_size(large, "gpt2") == (1.25e9, 5e9)
    models["gpt2"] = models["gpt2"].model_copy(update={"parameters": None})
    assert plan.model_size(large.model_copy(update={"models": models}), "gpt2")[0] == plan.BASE
    folder = Path("resources/models/gpt2")
    folder.mkdir(parents=True)
    files = {"model.safetensors": {"bytes": 500}, "vocab.json": {"bytes": 7}}
    (folder / "manifest.json").write_text(json.dumps({"files": files, "parameters": 250}))
    plan._model_size.cache_clear()
    assert plan.model_size(large, "gpt2") == (250, 500)


def test_a_text_counts_by_its_tokens(study: config.Config, root: Path) -> None:
    values = yaml.safe_load((root / "studies/recovery-text.yaml").read_text())
    text = config.load(values)
    paragraphs = values["tasks"]["wikitext2"]["limit"]["train"]
    a_row = plan.ROW_BYTES / plan.TOKEN_BYTES / plan.SENTENCE_TOKENS
    assert plan.sentences(text, "wikitext2") == pytest.approx(paragraphs * a_row)
    values["tasks"]["c4"] = values["tasks"]["wikitext2"] | {"limit": {"train": 4000}}
    values["tasks"]["wikitext2"]["train_on"] = "c4"
    text = config.load(values)
    assert plan.sentences(text, "wikitext2") == pytest.approx(4000 * a_row)
    folder = Path("resources/tasks/c4")
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"rows": {"train": 9}, "files": {"train.jsonl": {"bytes": 1800}}}))
    assert plan.sentences(text, "wikitext2") == pytest.approx(10)


def test_what_was_measured_on_a_gpu_replaces_what_was_assumed(study: config.Config) -> None:
    folder = Path("results/gpt2/dense/sst2/kept/seed-0")
    folder.mkdir(parents=True)
    seconds = {"setup_seconds": 30.0, "train_seconds": 500.0, "eval_seconds": 70.0}
    (folder / "runtime.json").write_text(json.dumps({**seconds, "device": "NVIDIA A100-SXM4-40GB"}))
    (folder / "metrics.json").write_text("{}")
    assert plan.minutes(study, "finetune", "gpt2", task="sst2") == (10.0, True)
    assert plan.minutes(study, "finetune", "bart-base", task="sst2")[1] is False
    assert sum(job.done for job in plan.jobs(study)) == 1


def test_what_was_measured_on_a_cpu_says_nothing_about_gpus(study: config.Config) -> None:
    folder = Path("results/gpt2/dense/sst2/kept/seed-0")
    folder.mkdir(parents=True)
    (folder / "runtime.json").write_text(json.dumps({"train_seconds": 9e9, "device": "cpu"}))
    assert plan.minutes(study, "finetune", "gpt2", task="sst2")[1] is False


@pytest.mark.parametrize(
    ("sparsity", "share"), [("0", 1.0), ("0.5", 0.441), ("0.95", 0.049), ("2of4", 0.441), ("0.7", 0.267)]
)
def test_bytes_of_a_sparse_checkpoint(sparsity: str, share: float) -> None:
    assert plan.stored(sparsity) == pytest.approx(share, abs=1e-3)


def test_the_table_names_every_stage_and_a_recommendation(study: config.Config, site: list[Queue]) -> None:
    text = plan.table(study, site)
    for word in ("prune", "weights", "measure", "finetune", "GPU-hours", "node-hours", "assumed", "QUEUE = "):
        assert word in text
