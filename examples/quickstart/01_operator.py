"""The operator alone: call it, take gradients, compare both with the definition in plain PyTorch.

Run it with `python examples/quickstart/01_operator.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stdeform import st_deform_attn_from_offsets

T, H, W = 6, 12, 20  # frames, height and width of the feature volume
B, Q, M, D, L, K = 2, 100, 8, 32, 1, 16  # batch, queries, heads, channels per head, levels, points


def attend(tensors: dict[str, Tensor], backend: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the output [B, Q, M * D] and the gradient of every tensor."""
    inputs = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    output = st_deform_attn_from_offsets(
        inputs["value"],
        [(T, H, W)],  # one (T, H, W) per level
        inputs["reference_points"],
        inputs["sampling_offsets"],
        inputs["attention_logits"],
        backend=backend,
    )
    output.square().mean().backward()
    return output.detach(), {name: tensor.grad for name, tensor in inputs.items()}


def main() -> None:
    """Runs the kernel and the reference on the same tensors."""
    torch.manual_seed(0)
    tensors = {
        "value": torch.randn(B, T * H * W, M, D),  # the features, frame by frame, row by row
        "reference_points": torch.rand(B, Q, L, 3),  # (x, y, t), each from 0 to 1
        "sampling_offsets": 2 * torch.randn(B, Q, M, L, K, 3),  # in cells and frames
        "attention_logits": torch.randn(B, Q, M, L, K),  # the softmax happens inside
    }
    output, gradients = attend(tensors, backend="auto")  # the kernel, where one was built
    expected, correct = attend(tensors, backend="reference")

    print(f"output {list(output.shape)}, largest difference {(output - expected).abs().max():.1e}")
    torch.testing.assert_close(output, expected)
    for name, gradient in gradients.items():
        difference = (gradient - correct[name]).abs().max()
        print(f"gradient of {name} {list(gradient.shape)}, largest difference {difference:.1e}")
        torch.testing.assert_close(gradient, correct[name], rtol=1e-3, atol=1e-6)


if __name__ == "__main__":
    main()
