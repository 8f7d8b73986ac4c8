from snakemake_executor_plugin_parsl import why
from snakemake_executor_plugin_parsl.progress import line
from snakemake_logger_plugin_progress.progress import Job, Progress

POOL = {"busy": 2, "slots": 4, "pilots": 1, "waiting": 1, "lost": 1}


def test_a_line_counts_every_job_once() -> None:
    progress = Progress({"finetune": 6})
    for number in range(5):
        progress.start(number, Job("finetune", minutes=10, begun=None))
    progress.end(0, 60.0)
    progress.end(1, None)
    said = line(progress, POOL)
    assert "1 queued, 2 running, 1 of 6 done, 1 failed, 1 preempted or lost" in said
    assert "2 of 4 slots busy | ends about " in said
    assert "\n" not in said


def test_reasons(tmp_path) -> None:
    spawned, log = tmp_path / "spawned", tmp_path / "log"
    spawned.write_text("Command 'false' returned non-zero exit status 7.")
    assert why(1, spawned, [log]) == "exit code 7"
    log.write_text("step 3\nerror: loss: is nan at step 3\n")
    assert why(1, spawned, [log]) == "loss: is nan at step 3"
    log.write_text("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB")
    assert why(1, spawned, [log]) == "out of memory"
    log.write_text("")
    spawned.write_text("Command '...' died with <Signals.SIGKILL: 9>.")
    assert "out of memory" in why(1, spawned, [log])
    spawned.write_text("MissingOutputException in rule x")
    assert "outputs" in why(1, spawned, [log])
    assert why(1, tmp_path / "none", []) == "exit code 1"
