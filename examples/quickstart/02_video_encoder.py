"""A video encoder layer on random clips: it learns to remove noise from moving waves.

From single pixels an error of about 0.33 is possible; the rest takes other cells and frames.

Run it with `python examples/quickstart/02_video_encoder.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stdeform import STDeformAttn, reference_grid

B, T, H, W, C = 2, 5, 8, 10, 32  # clips, frames, height, width, channels
STEPS = 60


class VideoEncoderLayer(nn.Module):
    """A transformer encoder layer in which every cell of every frame is a query."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = STDeformAttn(embed_dim=C, num_levels=1, num_heads=4, num_points=8)
        self.feedforward = nn.Sequential(nn.Linear(C, 2 * C), nn.ReLU(), nn.Linear(2 * C, C))
        self.norms = nn.ModuleList([nn.LayerNorm(C), nn.LayerNorm(C)])
        self.register_buffer("cells", reference_grid([(T, H, W)]), persistent=False)  # centres

    def forward(self, video: Tensor) -> Tensor:  # [B, T * H * W, C] in and out
        attended = self.attention(video, self.cells, video, [(T, H, W)])
        video = self.norms[0](video + attended)
        return self.norms[1](video + self.feedforward(video))


def moving_waves() -> Tensor:
    """Returns random clips [B, T * H * W, 3] in which each colour is a wave that moves."""
    axes = [torch.arange(size, dtype=torch.float32) for size in (T, H, W)]
    cells = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).view(T * H * W, 3)
    frequencies = torch.empty(B, 3, 3).uniform_(-0.7, 0.7)  # of time, rows and columns
    return torch.sin(cells @ frequencies + 6.3 * torch.rand(B, 1, 3))


def main() -> None:
    """Trains the layer and prints the loss."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, C), VideoEncoderLayer(), nn.Linear(C, 3))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(STEPS + 1):
        clean = moving_waves()
        noisy = clean + torch.randn_like(clean)
        loss = (model(noisy) - clean).square().mean()
        if step % 20 == 0:
            print(f"step {step}: squared error {loss.item():.3f}, of the noisy clip 1.000")
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


if __name__ == "__main__":
    main()
