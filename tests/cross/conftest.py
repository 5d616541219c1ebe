"""The emulated machines."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cross.machines import MACHINES, NAMES, Calls
from tests.support.backends import CrossCompiled


@pytest.fixture(scope="session")
def needs_arm() -> None:
    """For tests that compile for Arm, and run that."""
    if reason := MACHINES["arm"].missing():
        pytest.skip(f"no Arm processor can be emulated: {reason}")


@pytest.fixture(scope="module", params=NAMES)
def machine(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every machine with each of its instruction sets; the backend's name, for `operator`."""
    name, _, isa = request.param.partition("-")
    if reason := MACHINES[name].missing():
        pytest.skip(f"{name} cannot be emulated: {reason}")
    if isa not in MACHINES[name].isas():
        pytest.skip(f"this processor has no {isa}")
    CrossCompiled.calls = Calls(MACHINES[name], isa)
    yield "cross"
    CrossCompiled.calls.close()
