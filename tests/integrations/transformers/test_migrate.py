"""The first section of the page about moving to stdeform."""

from __future__ import annotations

import pytest
import torch

from tests.integrations.migrate_page import blocks, execute
from tests.integrations.transformers import models
from tests.integrations.transformers.models import Calls, transformers


@torch.no_grad()
def test_before_and_after(monkeypatch: pytest.MonkeyPatch) -> None:
    family = models.find("deformable_detr")
    monkeypatch.setattr(
        transformers.DeformableDetrForObjectDetection,
        "from_pretrained",
        lambda name: models.make(family),
    )
    before, after = blocks("Hugging Face transformers")
    with Calls() as calls:
        expected = models.outputs(execute(before)["model"], family)
    assert calls.number == 0
    with Calls() as calls:
        found = models.outputs(execute(after)["model"], family)
    assert calls.number > 0
    models.assert_equal_outputs(found, expected, rtol=1e-4)
