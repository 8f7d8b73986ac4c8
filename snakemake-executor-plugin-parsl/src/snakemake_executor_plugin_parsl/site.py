"""What a user says about a site: whom to charge, and which pilots to ask for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Site:
    """Settings that the function `config` of a Parsl configuration file takes, all checked.

    Args:
        account: project that is charged for the node-hours; "" if none is named.
        queue: queue or partition of the pilots; "" for that of the site.
        pilots: maximum number of pilots at once.
        nodes: nodes of each pilot.
        minutes: walltime of each pilot.
    """

    account: str = ""
    queue: str = ""
    pilots: int = 1
    nodes: int = 1
    minutes: int = 60

    @property
    def walltime(self) -> str:
        """Walltime of each pilot, HH:MM:SS."""
        return f"{self.minutes // 60:02d}:{self.minutes % 60:02d}:00"


def whole(name: str, text: str) -> int:
    """A positive number, as a user has written it.

    Raises:
        ValueError: one line with the name of the setting and the value found.
    """
    if not str(text).strip().isdigit() or int(text) < 1:
        raise ValueError(f"parsl-{name}: found {text!r}; write a whole number, such as 60")
    return int(text)
