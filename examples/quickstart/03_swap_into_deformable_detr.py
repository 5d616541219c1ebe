"""Replace the attention in an existing Deformable DETR encoder and keep its weights.

Run it with `python examples/quickstart/03_swap_into_deformable_detr.py`.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample

from stdeform import MSDeformAttn, reference_grid

SHAPES = [(12, 16), (6, 8)]  # height and width of the feature levels
C, M, L, K = 64, 8, len(SHAPES), 4  # channels, heads, levels, points


class TheirAttention(nn.Module):
    """What a project has today: the attention of Deformable DETR, written with `grid_sample`."""

    def __init__(self) -> None:
        super().__init__()
        self.sampling_offsets = nn.Linear(C, M * L * K * 2)
        self.attention_weights = nn.Linear(C, M * L * K)
        self.value_proj, self.output_proj = nn.Linear(C, C), nn.Linear(C, C)

    def forward(
        self, query: Tensor, points: Tensor, value: Tensor, shapes: list[tuple[int, int]]
    ) -> Tensor:
        B, Q, _ = query.shape
        offsets = self.sampling_offsets(query).view(B, Q, M, L, K, 2)
        weights = self.attention_weights(query).view(B, Q, M, L * K).softmax(-1).transpose(1, 2)
        values, samples = self.value_proj(value).split([h * w for h, w in shapes], 1), []
        for level, (h, w) in enumerate(shapes):
            shift = offsets[:, :, :, level] / torch.tensor([w, h])
            grid = 2 * (points[:, :, None, level, None] + shift).transpose(1, 2) - 1
            image = values[level].transpose(1, 2).reshape(B * M, C // M, h, w)
            samples.append(grid_sample(image, grid.flatten(0, 1), align_corners=False))
        weighted = torch.cat(samples, -1) * weights.reshape(B * M, 1, Q, L * K)
        return self.output_proj(weighted.sum(-1).view(B, C, Q).transpose(1, 2))


class TheirLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.norm = TheirAttention(), nn.LayerNorm(C)

    def forward(self, image: Tensor) -> Tensor:  # [B, cells of all levels, C]
        return self.norm(image + self.self_attn(image, reference_grid(SHAPES), image, SHAPES))


if __name__ == "__main__":
    torch.manual_seed(0)
    encoder, image = nn.Sequential(*(TheirLayer() for _ in range(3))), torch.randn(2, 240, C)
    before = encoder(image)
    for layer in encoder:
        ours = MSDeformAttn(embed_dim=C, num_levels=L, num_heads=M, num_points=K)
        ours.load_state_dict(layer.self_attn.state_dict())
        layer.self_attn = ours
    after = encoder(image)
    print(f"largest difference after the exchange {(after - before).abs().max():.1e}")
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
