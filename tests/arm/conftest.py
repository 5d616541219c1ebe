"""The emulated Arm processor."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.arm import emulated_arm
from tests.support.backends import OnArm


@pytest.fixture(scope="session")
def needs_arm() -> None:
    """For tests that compile for Arm, and run that."""
    if reason := emulated_arm.missing():
        pytest.skip(f"no Arm processor can be emulated: {reason}")


@pytest.fixture
def arm(needs_arm: None) -> Iterator[str]:
    """The backend's name, for `operator` of support/cases.py."""
    OnArm.machine = emulated_arm.Machine()
    yield "arm"
    OnArm.machine.close()
