"""Local VPP: a detector's object queries as tokens of the language model (paper, section III-C)."""

from jaxtyping import Bool, Float
from torch import Tensor, nn

from vpp_plugins.errors import VPPError


class LocalVPP(nn.Module):
    """A generator of object queries and the projector that brings them to the language model's width.

    The generator maps images `[images, 3, height, width]` (and a mask, True on image, or None) to
    `[images, num_queries, query_width]`.
    """

    def __init__(
        self,
        generator: nn.Module,
        *,
        num_queries: int,
        query_width: int,
        hidden_size: int,
        projector_size: int = 1024,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.num_queries, self.query_width, self.gain = num_queries, query_width, gain
        self.generator = generator
        self.projector = nn.Sequential(
            nn.Linear(query_width, projector_size), nn.GELU(), nn.Linear(projector_size, hidden_size)
        )

    def forward(
        self,
        pixel_values: Float[Tensor, "images 3 height width"],
        pixel_mask: Bool[Tensor, "images height width"] | None = None,
    ) -> Float[Tensor, "images queries hidden"]:
        """Return the projected queries; pixels are ImageNet-normalised, sides multiples of 32.

        Raises VPPError where the generator's queries are not as many, or not as wide, as it was said to make.
        """
        queries: Tensor = self.generator(pixel_values, pixel_mask)
        expected = (pixel_values.shape[0], self.num_queries, self.query_width)
        if queries.shape != expected:
            raise VPPError(
                f"the generator {type(self.generator).__name__} returned {tuple(queries.shape)}, but "
                f"[images, num_queries, query_width] = {expected} is expected: fix it, or say what it makes."
            )
        projected: Tensor = self.projector(queries)
        return projected if self.gain == 1 else projected * self.gain
