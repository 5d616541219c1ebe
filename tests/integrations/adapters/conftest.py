"""The projects by our modules, and every adapter off after each test."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.integrations.adapters.calls import ADAPTERS, adapter
from tests.integrations.adapters.fake_projects import FakeProjects, is_fake


@pytest.fixture(autouse=True)
def _disabled() -> Iterator[None]:
    yield
    for project in ADAPTERS:
        adapter(project).disable()


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch, _disabled: None) -> Iterator[FakeProjects]:
    """The projects by our modules, imported anew."""
    for name in filter(is_fake, tuple(sys.modules)):
        monkeypatch.delitem(sys.modules, name)
    found = FakeProjects()
    monkeypatch.setattr(sys, "meta_path", [found, *sys.meta_path])
    yield found
    for name in filter(is_fake, tuple(sys.modules)):
        del sys.modules[name]
