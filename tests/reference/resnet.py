"""The recorded checkpoint's small ResNet: torchvision's, with 16 channels in the stem, known to timm under a name."""

from typing import Any

from timm.models import register_model
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

STEM, DEPTHS, NAME = 16, (1, 2, 2, 1), "vpp_reference_resnet"


class Body(nn.Module):
    """The stages' names are torchvision's, by which the checkpoint goes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, STEM, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.pool = nn.MaxPool2d(3, 2, 1)
        widths = [STEM, *(4 * STEM * 2**stage for stage in range(4))]
        for stage, depth in enumerate(DEPTHS, start=1):
            blocks = [_block(widths[stage - 1], widths[stage], stride=1 if stage == 1 else 2)]
            blocks += [Bottleneck(widths[stage], widths[stage] // 4) for _ in range(depth - 1)]
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.feature_info = type("Info", (), {"channels": staticmethod(lambda: widths[1:])})

    def forward(self, pixels: Tensor) -> list[Tensor]:
        features = self.pool(self.bn1(self.conv1(pixels)).relu())
        for stage in range(1, 5):
            features = self.get_submodule(f"layer{stage}")(features)
        return [features]


def _block(narrow: int, wide: int, *, stride: int) -> Bottleneck:
    shortcut = nn.Sequential(nn.Conv2d(narrow, wide, 1, stride, bias=False), nn.BatchNorm2d(wide))
    return Bottleneck(narrow, wide // 4, stride, shortcut)


@register_model
def vpp_reference_resnet(pretrained: bool = False, **options: Any) -> Body:
    return Body()
