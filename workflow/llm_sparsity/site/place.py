"""The place where a study is to run: its profile, the pools that the profile names, and the jobs that are left."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.study import plan
from llm_sparsity.study.config import Config

FILES = ("profile.yaml", "config.yaml", "config.v9+.yaml", "profile.v9+.yaml")  # of a profile


@dataclass(frozen=True)
class Place:
    """A study and where it is to run.

    Args:
        study: the study.
        left: jobs of its plan that have not been done.
        profile: a Snakemake profile; None: this machine.
        batch: the batch system: `PBS`, `Slurm`, or empty for this machine.
        settings: of the profile.
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
        return str((self.settings.get("default-resources") or {}).get(name, ""))


def place(study: Config, profile: Path | None = None) -> Place:
    """Read a profile and the pools that it names.

    Raises:
        UserError: there is no such profile, or it is no YAML.
    """
    left = [job for job in plan.jobs(study) if not job.done]
    if profile is None:
        return Place(study, left)
    file = next((profile / name for name in FILES if (profile / name).is_file()), None)
    if file is None:
        raise UserError(f"--profile: found {profile}, which has no config.yaml; name the folder of a profile")
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{file}: no YAML: {' '.join(str(error).split())}") from None
    pools, trouble = _pools(settings)
    return Place(study, left, profile, _batch(settings), settings, pools, trouble)


def _batch(settings: Mapping[str, Any]) -> str:
    """The batch system of a profile: that of its executor, or whose provider its Parsl configuration names."""
    if settings.get("executor") == "slurm":
        return "Slurm"
    file = Path(settings.get("parsl-config", ""))
    text = file.read_text(encoding="utf-8") if settings.get("executor") == "parsl" and file.is_file() else ""
    return next((system for system in ("PBS", "Slurm") if f"{system}Provider" in text), "")


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
