"""The place where a study is to run: its profile, the pools that the profile names, and the jobs that are left."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.study import plan
from llm_sparsity.study.config import Config

FILES = ("profile.yaml", "config.yaml", "config.v9+.yaml", "profile.v9+.yaml")  # of a profile
PAIRS = ("default-resources", "resources", "set-threads")  # settings that hold names and values
SYSTEMS = {"pbspro": "PBS", "slurm": "Slurm"}  # by the labels of Parsl's providers


@dataclass(frozen=True)
class Place:
    """A study and where it is to run.

    Args:
        study: the study.
        left: jobs of its plan that have not been done.
        profile: a Snakemake profile; None: this machine.
        batch: the batch system: `PBS`, `Slurm`, or empty for this machine.
        settings: of the profile, as text; those in PAIRS are mappings.
        pools: executors of the Parsl configuration that the profile names.
        trouble: why that configuration cannot be used, in one line.
    """

    study: Config
    left: Sequence[plan.Job]
    profile: Path | None = None
    batch: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    pools: Sequence[Any] = ()
    trouble: str = ""

    @property
    def provider(self) -> Any:
        """Parsl's provider, which requests batch jobs; None without pools."""
        return self.pools[0].provider if self.pools else None

    @property
    def submitted(self) -> list[plan.Job]:
        """Jobs that do not run beside the driver."""
        return [job for job in self.left if not job.local]

    def resource(self, name: str) -> str:
        """A default resource of the profile, such as `slurm_account`; empty if it sets none."""
        return str(self.settings.get("default-resources", {}).get(name, ""))

    def numbers(self, key: str, *names: str) -> dict[str, int]:
        """Whole numbers of a setting in PAIRS: those of some names, or all.

        Raises:
            UserError: one of them is none.
        """
        pairs = {name: text for name, text in self.settings.get(key, {}).items() if not names or name in names}
        if wrong := [f"{name}={text}" for name, text in pairs.items() if not text.isdigit()]:
            raise UserError(f"{self.profile}: {key}: found {wrong[0]!r}; write a whole number")
        return {name: int(text) for name, text in pairs.items()}


def place(study: Config, profile: Path | None = None) -> Place:
    """Read a profile and the pools that it names.

    Raises:
        UserError: there is no such profile, or it is no YAML of settings.
    """
    left = [job for job in plan.jobs(study) if not job.done]
    if profile is None:
        return Place(study, left)
    settings = settings_of(profile)
    pools, trouble = _pools(settings)
    return Place(study, left, profile, _batch(settings, pools), settings, pools, trouble)


def settings_of(profile: Path) -> dict[str, Any]:
    """The settings of a profile, as Snakemake reads them.

    Raises:
        UserError: there is no such profile, or it is no YAML of settings.
    """
    file = next((profile / name for name in FILES if (profile / name).is_file()), None)
    if file is None:
        raise UserError(f"--profile: found {profile}, which has no config.yaml; name the folder of a profile")
    from configargparse import ConfigFileParserException  # type: ignore[import-untyped]
    from snakemake.profiles import ProfileConfigFileParser
    from snakemake_interface_common.exceptions import WorkflowError

    try:
        with file.open(encoding="utf-8") as opened:
            settings = dict(ProfileConfigFileParser().parse(opened))
    except (ConfigFileParserException, WorkflowError, OSError, ValueError) as error:
        raise UserError(f"{file}: no profile: {' '.join(str(error).split())}") from None
    return settings | {key: _pairs(settings[key], f"{file}: {key}") for key in PAIRS if key in settings}


def _pairs(value: str | list[Any], where: str) -> dict[str, str]:
    """Names and values of `name=value`, or of a list of them."""
    words = [value] if isinstance(value, str) else list(map(str, value))
    if wrong := [word for word in words if "=" not in word]:
        raise UserError(f"{where}: found {wrong[0]!r}; write NAME=VALUE")
    return {name: text.strip("'\"") for name, _, text in (word.partition("=") for word in words)}


def _batch(settings: Mapping[str, Any], pools: Sequence[Any]) -> str:
    """The batch system of a profile: that of its executor, or that its pools request batch jobs from."""
    if settings.get("executor") == "slurm":
        return "Slurm"
    if pools:
        return SYSTEMS.get(pools[0].provider.label, "")
    file = Path(str(settings.get("parsl-config", "")))  # not loaded: as far as its text tells
    text = file.read_text(errors="replace") if settings.get("executor") == "parsl" and file.is_file() else ""
    found = re.search(r"\b(PBS|Slurm)\w*Provider\b", text)
    return found[1] if found else ""


def _pools(settings: Mapping[str, Any]) -> tuple[Sequence[Any], str]:
    """The executors of the Parsl configuration that a profile names, and why it cannot be used."""
    if settings.get("executor") != "parsl":
        return (), ""
    from snakemake_executor_plugin_parsl.config import load
    from snakemake_executor_plugin_parsl.site import Site, whole

    given = {key.removeprefix("parsl-"): str(value) for key, value in settings.items() if key.startswith("parsl-")}
    try:
        numbers = {name: whole(name, given[name]) for name in ("pilots", "nodes", "minutes") if name in given}
        site = Site(account=given.get("account", ""), queue=given.get("queue", ""), **numbers)
        return list(load(Path(given.get("config", "")), site).executors), ""
    except ValueError as error:
        return (), str(error)
