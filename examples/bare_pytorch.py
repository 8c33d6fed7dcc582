"""Both prompts on a toy vision-language model in plain PyTorch: no transformers, no plugin, no host.

An image shows a red square; asked for it, the model says where it stands. Runs in seconds on a CPU:

    python examples/bare_pytorch.py
"""

import torch
from torch import Tensor, nn

from vpp_plugins import GlobalVPP, LocalVPP

SIDE, WIDTH = 32, 64


class TinyDetector(nn.Module):
    """A generator of object queries: what a detector does, at its smallest."""

    def __init__(self, num_queries: int, width: int) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, width, 8, 4, 2), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1))
        self.queries = nn.Parameter(torch.randn(num_queries, width))

    def forward(self, pixels: Tensor, mask: Tensor | None = None) -> Tensor:
        cells = self.features(pixels).flatten(2).mT
        return self.queries + (self.queries @ cells.mT / cells.shape[-1] ** 0.5).softmax(-1) @ cells


class ToyVLM(nn.Module):
    """The question, the image's patches and any extra tokens go through a transformer, which answers with a box."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)
        self.places = nn.Parameter(torch.randn((SIDE // 4) ** 2, WIDTH))
        self.question = nn.Parameter(torch.randn(1, WIDTH))
        self.block = nn.TransformerEncoderLayer(WIDTH, 4, 128, dropout=0.0, batch_first=True, norm_first=True)
        self.answer = nn.Linear(WIDTH, 4)

    def forward(self, pixels: Tensor, extra_tokens: Tensor) -> Tensor:
        image = self.patches(pixels).flatten(2).mT + self.places
        tokens = torch.cat([self.question.expand(len(pixels), 1, -1), image, extra_tokens], dim=1)
        return self.answer(self.block(tokens)[:, 0]).sigmoid()


def make_batch(count: int) -> tuple[Tensor, Tensor]:
    """Return images, as pixels from -1 to 1, and the true boxes."""
    images = 0.2 * torch.rand(count, 3, SIDE, SIDE) - 0.1
    corners = torch.randint(0, SIDE - 8, (count, 2))
    for image, (x, y) in zip(images, corners.tolist(), strict=True):
        image[:, y : y + 8, x : x + 8] = torch.tensor([1.0, -1.0, -1.0])[:, None, None]
    return images, torch.cat([corners, corners + 8], dim=1) / SIDE


torch.manual_seed(0)
model = ToyVLM()
half = (0.5, 0.5, 0.5)  # what takes colours from 0 to 1 to pixels from -1 to 1
axes = GlobalVPP(SIDE, border=4, image_mean=half, image_std=half)
objects = LocalVPP(TinyDetector(8, 32), num_queries=8, query_width=32, hidden_size=WIDTH, projector_size=64)
drawn = axes.prompt.detach().clone()

optimizer = torch.optim.Adam([*model.parameters(), *axes.parameters(), *objects.parameters()], lr=3e-3)
for step in range(101):
    pixels, truth = make_batch(64)
    seen = axes(pixels)  # the global prompt: axes blended into the pixels
    boxes = model(seen, extra_tokens=objects(seen))  # the local prompt: object queries as further tokens
    loss = nn.functional.l1_loss(boxes, truth)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 0:
        print(f"step {step:3}  loss {loss.item():.4f}")

moved = (axes.prompt - drawn).abs()
print(f"the axes moved by {moved.max():.3f} in their band, and by {(moved * (1 - axes.mask)).max():.3f} elsewhere")
