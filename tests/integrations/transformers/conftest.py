"""Plain transformers before and after every test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import stdeform.integrations.transformers as st


@pytest.fixture(autouse=True)
def _plain_afterwards() -> Iterator[None]:
    """Undoes what a test enables; and one thread, since models so small would wait for others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    st.disable()
