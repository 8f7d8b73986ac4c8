"""What Slurm is asked."""

import os

import pytest

from llm_sparsity.site import slurm


def test_a_user_without_a_name_has_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs as another user."""
    assert not slurm._user().isdecimal()
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)
    assert slurm._user() == str(2**31 - 7)
