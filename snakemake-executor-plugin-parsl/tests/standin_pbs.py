"""A stand-in for a PBS server: qsub, qstat and qdel that behave as those of a real server were observed to.

    python standin_pbs.py qsub|qstat|qdel|preempt ...

Its state is the folder $STANDIN_PBS, with a file `N.json` per job, and files by which tests control it:

    down           the server does not answer
    limit          maximum number of jobs
    queue-seconds  seconds for which jobs are queued
    never-N        job N stays queued
    walltime-N     seconds after which job N is killed, whatever it requested
    broken-json    qstat escapes nothing
    stuck          jobs that are deleted do not end while this file exists
    comment-N      comment of job N while it is queued
    held-N         job N is held by its user while this file exists
    stopped-QUEUE  the queue starts no jobs

Every command is noted in the file `calls`.
"""

import contextlib
import csv
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

STATE = Path(os.environ["STANDIN_PBS"])
SERVER = "polaris-pbs-01.lab.test"
KILL = 60  # seconds from SIGTERM to SIGKILL; a real server waits ten, in which a busy machine does not end a pilot
RAN = "Job run at Tue Nov 24 at 04:08 on (x3001c0s1b0n0:ncpus=64)"


def setting(name: str, default: str = "") -> str:
    """A number or word that a test has written; the default while it is being written or removed."""
    try:
        return (STATE / name).read_text().strip() or default
    except FileNotFoundError:
        return default


@contextlib.contextmanager
def locked() -> Iterator[None]:
    with (STATE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def jobs() -> dict[int, dict]:
    return {int(file.stem): json.loads(file.read_text()) for file in STATE.glob("[0-9]*.json")}


def load(number: int) -> dict:
    return json.loads((STATE / f"{number}.json").read_text())


def save(number: int, record: dict) -> None:
    """Replace a job's file as a whole: it is read without the lock."""
    new = STATE / f"{number}.new"
    new.write_text(json.dumps(record))
    new.replace(STATE / f"{number}.json")


def change(number: int, **fields: object) -> None:
    with locked():
        record = load(number) | fields
        save(number, {key: value for key, value in record.items() if value is not None})


def fail(code: int, message: str) -> None:
    print(message, file=sys.stderr)
    sys.exit(code)


def refuse_if_down(command: str, code: int) -> None:
    if (STATE / "down").exists():
        fail(code, f"Connection refused\n{command}: cannot connect to server {SERVER} (errno=15010)")


def minutes(text: str) -> float:
    hours, rest, seconds = map(int, text.split(":"))
    return hours * 60 + rest + seconds / 60


def qsub(arguments: list[str]) -> None:
    refuse_if_down("qsub", 162)
    *options, script = arguments
    text = Path(script).read_text()
    requested: dict[str, str] = dict(zip(options[::2], options[1::2], strict=True))
    resources: dict[str, str] = {}
    for line in re.findall(r"^#PBS (.*)$", text, re.MULTILINE):
        flag, _, value = line.partition(" ")
        if flag == "-l":
            key, _, amount = value.partition("=")
            resources[key] = amount
        else:
            requested.setdefault(flag, value)
    if "-A" not in requested:
        fail(32, "qsub: Account_Name is required to be set.")
    for key in ("filesystems", "walltime"):
        if key not in resources:
            fail(32, f"qsub: Resource: {key} is required to be set.")
    if requested.get("-k") != "doe":
        fail(32, "qsub: only -k doe is allowed")
    if not 0 < len(requested["-N"]) <= 230 or re.search(r"[\s/:=,]", requested["-N"]):
        fail(2, "qsub: illegal -N value")
    queue, nodes = requested.get("-q", "prod"), int(resources["select"].split(":")[0])
    with Path(os.environ["STANDIN_QUEUES"]).open(newline="") as table:
        rows = [row for row in csv.DictReader(table) if row["queue"] == queue]
    if not rows:
        fail(*((174, "qsub: Access to queue is denied") if queue == "small" else (170, "qsub: Unknown queue")))
    low, high = min(int(row["min_nodes"]) for row in rows), max(int(row["max_nodes"]) for row in rows)
    least, most = min(int(row["min_minutes"]) for row in rows), max(int(row["max_minutes"]) for row in rows)
    if not (low <= nodes <= high and least <= minutes(resources["walltime"]) <= most):
        fail(188, "qsub: Job violates queue and/or server resource limits")
    with locked():
        alive = [job for job in jobs().values() if job["job_state"] != "F"]
        if len(alive) >= int(setting("limit", "100")):
            fail(38, "qsub: would exceed queue generic's per-user limit")
        number = int(setting("number", "640000")) + 1
        (STATE / "number").write_text(str(number))
        fits = any(
            int(row["min_nodes"]) <= nodes <= int(row["max_nodes"])
            and minutes(resources["walltime"]) <= int(row["max_minutes"])
            for row in rows
        )
        if fits:  # otherwise it gets an id and disappears
            (STATE / f"{number}.sh").write_text(text)
            record = {
                "Job_Name": requested["-N"], "job_state": "Q", "queue": queue, "substate": 10, "run_count": 0,
                "out": requested["-o"], "err": requested["-e"], "rerunnable": requested.get("-r", "y"),
                "comment": "Not Running: Not enough free nodes available",
                "Variable_List": {"PBS_O_PATH": "/usr/bin", "BASH_FUNC_module%%": "() { eval `x` }"},
            }  # fmt: skip
            save(number, record)
    if fits:
        subprocess.Popen(
            [sys.executable, __file__, "mom", str(number)],
            start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    print(f"{number}.{SERVER}")


def mom(number: int) -> None:
    """The life of a job: it is queued, starts, and ends or is killed."""
    while True:
        begun = time.monotonic()
        while waits(number) or time.monotonic() < begun + float(setting("queue-seconds", "0")):
            time.sleep(0.1)
            if load(number).get("delete"):
                return change(number, job_state="F", substate=91, delete=None)
        record = load(number)
        if not all(Path(record[stream]).parent.is_dir() for stream in ("out", "err")):
            held = "job held, too many failed attempts to run"
            change(number, job_state="H", substate=20, run_count=21, Exit_status=-3, comment=held)
            while not load(number).get("delete"):
                time.sleep(0.1)
            return change(number, job_state="F", substate=91, delete=None)
        if run(number, record) != "again":
            return None


def run(number: int, record: dict) -> str:
    change(number, job_state="R", substate=42, run_count=record["run_count"] + 1, comment=RAN, Exit_status=None)
    environment = {  # not that of the submitting process
        "HOME": os.environ["HOME"], "PATH": "/usr/local/bin:/usr/bin:/bin", "OMP_NUM_THREADS": "1", "NCPUS": "64",
        "TMPDIR": f"/var/tmp/pbs.{number}.{SERVER}", "PBS_JOBID": f"{number}.{SERVER}", "ENVIRONMENT": "BATCH",
    }  # fmt: skip
    os.umask(0o077)
    with Path(record["out"]).open("a") as out, Path(record["err"]).open("a") as err:
        job = subprocess.Popen(
            ["bash", str(STATE / f"{number}.sh")],
            cwd=os.environ["HOME"], env=environment, start_new_session=True, stdout=out, stderr=err,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    change(number, session=job.pid)
    begun = time.monotonic()
    reason = ""
    while job.poll() is None:
        time.sleep(0.1)
        now = load(number)
        limit = float(setting(f"walltime-{number}", "1e9"))
        if now.get("delete"):
            reason = f"terminated by {now['delete']}@{SERVER}"
            change(number, comment=f"{RAN} and {reason}")  # still in state R for a while
        elif time.monotonic() > begun + 1.2 * limit + 0.5:  # late, as observed
            reason = "exceeded resource walltime"
        if reason:
            end(job)
    if "Scheduler" in reason and record["rerunnable"] == "y":
        change(number, job_state="Q", substate=10, Exit_status=-11, comment=RAN, delete=None)
        return "again"
    if reason:
        code = -29 if "walltime" in reason else 256 + signal.SIGTERM
    else:
        code = job.returncode if job.returncode >= 0 else 256 - job.returncode
        reason = "finished" if code == 0 else "failed"
    substate = 92 if code == 0 else 91 if "terminated" in reason else 93
    change(
        number, job_state="F", substate=substate, Exit_status=code, comment=f"{RAN} and {reason}", delete=None
    )  # fmt: skip
    return ""


def end(job: subprocess.Popen[bytes]) -> None:
    """SIGTERM to all processes of the session, and some time later, or once the script has ended, SIGKILL."""
    os.killpg(job.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        job.wait(KILL)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    while (STATE / "stuck").exists():
        time.sleep(0.1)


def waits(number: int) -> bool:
    """Whether a test keeps a job in the queue; its state and comment follow the test's files."""
    held = (STATE / f"held-{number}").exists()
    comment = setting(f"comment-{number}", "Not Running: Not enough free nodes available")
    fields = {"job_state": "H", "Hold_Types": "u", "comment": None} if held else {"job_state": "Q", "comment": comment}
    if any(load(number).get(key) != value for key, value in fields.items()):
        change(number, **fields)
    return held or (STATE / f"never-{number}").exists()


def queues() -> None:
    """What `qstat -Q -f` prints; a routing queue has no limits of its own."""
    refuse_if_down("qstat", 255)
    with Path(os.environ["STANDIN_QUEUES"]).open(newline="") as table:
        rows = list(csv.DictReader(table))
    for name in dict.fromkeys(row["queue"] for row in rows):
        print(f"Queue: {name}\n    queue_type = {'Route' if name == 'prod' else 'Execution'}")
        for row in (row for row in rows if row["queue"] == name and name != "prod"):
            for bound in ("min", "max"):
                walltime = f"{int(row[f'{bound}_minutes']) // 60:02d}:{int(row[f'{bound}_minutes']) % 60:02d}:00"
                print(f"    resources_{bound}.nodect = {row[f'{bound}_nodes']}")
                print(f"    resources_{bound}.walltime = {walltime}")
            print(f"    max_run = [u:PBS_GENERIC={row['jobs']}]")
        print(f"    enabled = True\n    started = {not (STATE / f'stopped-{name}').exists()}\n")


def qstat(arguments: list[str]) -> None:
    if "--version" in arguments:
        return print("pbs_version = 23.06.06")
    if "-Q" in arguments:
        return queues()
    form = arguments[arguments.index("-F") + 1] if "-F" in arguments else "text"
    wanted = [argument for argument in arguments if argument[0].isdigit()]
    every = "-E" in arguments or form == "dsv"
    found, errors, code = {}, [], 0
    down = (STATE / "down").exists()
    known = {} if down else jobs()
    for name in wanted if not down else ():
        number = int(name.split(".")[0])
        if number not in known:
            errors.append(f"qstat: Unknown Job Id {number}.{SERVER}")
            code = 153
        elif known[number]["job_state"] == "F" and "-x" not in arguments:
            errors.append(
                f"qstat: {number}.{SERVER} Job has finished, use -x or -H to obtain historical job information"
            )
            code = 35
        elif every or not found:  # JSON lists only the first, unless -E
            found[f"{number}.{SERVER}"] = known[number]
    if form == "dsv":
        for name, job in found.items():
            print("|".join([f"Job Id: {name}", *(f"{key}={value}" for key, value in job.items())]))
    else:
        text = json.dumps({"timestamp": 1, "pbs_server": SERVER} | ({"Jobs": found} if found else {}), indent=1)
        print(text.replace('"/usr/bin"', '"\\\'"') if (STATE / "broken-json").exists() else text)
    for error in errors:
        print(error, file=sys.stderr)
    refuse_if_down("qstat", 255)
    sys.exit(code)


def qdel(names: list[str], by: str = "pbsuser") -> None:
    refuse_if_down("qdel", 162)
    code = 0
    for name in names:
        number = int(name.split(".")[0])
        if not (STATE / f"{number}.json").exists():
            code = 153
            print(f"qdel: Unknown Job Id {name}", file=sys.stderr)
        elif load(number)["job_state"] == "F":
            code = 35
            print(f"qdel: Job has finished {name}", file=sys.stderr)
        else:
            change(number, delete=by)
    sys.exit(code)


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    if command != "mom":
        with (STATE / "calls").open("a") as calls:
            calls.write(f"{command}\n")
    if command == "mom":
        mom(int(rest[0]))
    elif command == "preempt":
        qdel(rest, "Scheduler")
    else:
        {"qsub": qsub, "qstat": qstat, "qdel": qdel}[command](rest)
