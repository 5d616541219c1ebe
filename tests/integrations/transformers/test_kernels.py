"""Beside the `kernels` package, whose layers transformers takes with `use_kernels=True`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stdeform.integrations.transformers as st
from tests.integrations.transformers import models
from tests.integrations.transformers.models import Calls, transformers

pytestmark = pytest.mark.skipif(
    not hasattr(transformers.PreTrainedModel, "set_use_kernels"), reason="transformers before 5"
)
HAS_KERNELS = getattr(transformers.utils, "is_kernels_available", bool)()


@pytest.mark.skipif(HAS_KERNELS, reason="kernels is installed")
def test_the_error_without_it_stays(tmp_path: Path) -> None:
    model = models.make(models.find("rt_detr"))
    model.save_pretrained(tmp_path)

    def error() -> str:
        with pytest.raises(ValueError, match="Kernels are not available") as caught:
            type(model).from_pretrained(tmp_path, use_kernels=True)
        return str(caught.value)

    expected = error()
    st.enable()
    assert error() == expected


class _Zeros(nn.Module):
    """A layer that shows where it is used."""

    has_backward = True

    def forward(
        self,
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_spatial_shapes_list: list[tuple[int, int]],
        level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int,
    ) -> Tensor:
        return value.new_zeros(len(value), sampling_locations.shape[1], value[0, 0].numel())


class _Repository:
    layer_name = "MultiScaleDeformableAttention"

    def load(self) -> type[nn.Module]:
        return _Zeros


@pytest.mark.skipif(not HAS_KERNELS, reason="no kernels that transformers takes")
@pytest.mark.parametrize(
    ("steps", "number"),
    [("k", 0), ("ek", 3), ("pk", 3), ("kp", 3), ("epk", 3), ("ke", 0), ("kep", 3)],
)
@torch.no_grad()
def test_the_operator_stays(steps: str, number: int) -> None:
    import kernels  # type: ignore[import-not-found]

    family = models.find("rt_detr")
    model = models.make(family)
    expected = models.outputs(model, family)
    do: dict[str, Callable[[], Any]] = {
        "e": st.enable,
        "p": lambda: st.patch(model),
        "k": lambda: model.set_use_kernels(True),
    }
    with kernels.use_kernel_mapping({_Repository.layer_name: {"cpu": _Repository()}}):
        for step in steps:
            do[step]()
    with Calls() as calls:
        found = models.outputs(model, family)
    assert calls.number == number
    if number:
        models.assert_equal_outputs(found, expected, rtol=1e-4)
        st.disable()
        models.assert_equal_outputs(models.outputs(model, family), expected, rtol=0.0)
