"""A model that runs on the operator leaves PyTorch as ONNX, with its project's own code."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

import stdeform.integrations.transformers as st
from tests.integrations.transformers import models
from tests.support.exported import to_onnx


class _Detector(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.model(pixel_values=pixels)
        return outputs.logits, outputs.pred_boxes


@torch.no_grad()
def test_deformable_detr_in_onnx_runtime(tmp_path: Path) -> None:
    model = models.make(models.find("deformable_detr"))
    assert st.enable()
    detector = _Detector(model).eval()
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    # The optimizer of onnxscript 0.7.2 leaves a node of transformers' inverse sigmoid without its
    # input, in the plain model too.
    exported = to_onnx(detector, (pixels,), tmp_path / "detr.onnx", optimize=False)
    results, expected = exported.onnxruntime(pixels), list(detector(pixels))
    # Both are float32 through 9 layers; differences of locations grow with each of them.
    torch.testing.assert_close(results, expected, rtol=1e-4, atol=1e-4)
