"""The command `llm-sparsity`: each subcommand translates its flags and calls what does the work.

llm-sparsity init MODEL             write a study of a model, and show what it takes
llm-sparsity plan STUDY             what a study takes: jobs, hours, memory, disk
llm-sparsity doctor STUDY [...]     check the place where it is to run
llm-sparsity run STUDY [...]        run it, with any options of Snakemake
llm-sparsity export CELL [...]      write a model for other programs, with its card
llm-sparsity generate FOLDER [...]  continue a prompt by a model, dense and sparse
llm-sparsity clean STUDY [...]      list caches that no study needs
"""

import argparse
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from llm_sparsity import __version__
from llm_sparsity.cli.project import project, study_file
from llm_sparsity.jobs.command import run as run_command

SCRIPTS = ("export", "generate", "clean", "doctor")  # commands that start the script of their name


def main(words: Sequence[str] | None = None) -> None:
    """Run a subcommand; user errors end in one line."""
    arguments = list(sys.argv[1:] if words is None else words)
    if arguments and arguments[0] in SCRIPTS:
        script = project() / "scripts" / f"{arguments[0]}.py"
        sys.argv = [str(script), *arguments[1:]]
        runpy.run_path(str(script), run_name="__main__")
        return
    parser = _parser()
    args, rest = parser.parse_known_args(arguments)
    if rest and args.call is not _run:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    run_command(lambda: args.call(args, rest))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llm-sparsity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"llm-sparsity {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, call: Callable[..., None], text: str) -> argparse.ArgumentParser:
        found = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        found.set_defaults(call=call)
        return found

    init = command("init", _init, "write a study of a model, and show what it takes")
    init.add_argument("model", help="a folder of a transformers model, or a repository id of the hub")
    init.add_argument("--name", help="of the model in the study (default: the last part of MODEL)")
    init.add_argument("--output", type=Path, help="file to write (default: NAME.yaml)")
    plan = command("plan", _plan, "show what a study takes: jobs, hours, memory, disk")
    plan.add_argument("study", type=Path, help="its config, a YAML file, or the name of a shipped one")
    plan.add_argument("--queues", type=Path, help="table of a site's queues, to be told which one to use")
    run = command("run", _run, "run a study; other options go to Snakemake, such as -n")
    run.add_argument("study", type=Path, help="its config, a YAML file, or the name of a shipped one")
    return parser


def _init(args: argparse.Namespace, rest: Sequence[str]) -> None:
    from llm_sparsity.cli.init import init

    del rest
    path = init(args.model, name=args.name, output=args.output)
    print(f"Wrote {path}: a study to edit, each line explained.\n")
    _plan(argparse.Namespace(study=path, queues=None), ())
    print(f"\nNext:  llm-sparsity run {path} -n    what would run\n       llm-sparsity run {path}       run it")


def _plan(args: argparse.Namespace, rest: Sequence[str]) -> None:
    import yaml

    from llm_sparsity.study import config, plan

    del rest
    study = config.load(yaml.safe_load(study_file(args.study).read_text(encoding="utf-8")))
    print(plan.table(study))
    if args.queues:
        from llm_sparsity.study import advice

        print(advice.advise(plan.jobs(study), advice.queues(args.queues)))


def _run(args: argparse.Namespace, rest: Sequence[str]) -> None:
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(project() / "Snakefile")]
    command += ["--configfile", str(study_file(args.study)), "--cores", "all", *rest]
    sys.stdout.flush()
    os.environ["LLM_SPARSITY_RUN"] = "1"
    os.execv(sys.executable, command)
