"""ResNet-18, 34, 50 and 101 up to their last map (He et al., arXiv 1512.03385), in plain torch.

Parameter names, arithmetic and initial weights are torchvision's, whose bottleneck has its stride in the 3 x 3
convolution: weights go in and out unchanged, and a seed gives the same network.
"""

from __future__ import annotations

from torch import Tensor, nn

from pri3d import registry

WIDTHS = (64, 128, 256, 512)  #: of the four layers' 3 x 3 convolutions
CLASSES = 1000  #: of the classifier that is left out


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut: (B, inputs, h, w) -> (B, width, ceil(h / stride), ...)."""

    expansion = 1  #: output channels for each of ``width``

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map -> map, see the class."""
        y = self.relu(self.bn1(self.conv1(x)))
        return _join(self, x, self.bn2(self.conv2(y)))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 beside a shortcut: (B, inputs, h, w) -> (B, 4 width, ceil(h / stride), ...)."""

    expansion = 4  #: output channels for each of ``width``

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = _conv(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map -> map, see the class."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return _join(self, x, self.bn3(self.conv3(y)))


Block = BasicBlock | Bottleneck

#: name -> kind of block, how many of them each of the four layers has
SIZES: dict[str, tuple[type[Block], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
}


def build_trunk(name: str) -> dict[str, nn.Module]:
    """Untrained parts of a ResNet in the order images pass them, by the names they have in torchvision.

    ``conv1``, ``bn1`` and ``relu`` give a map of stride 2 and 64 channels, ``maxpool`` and ``layer1`` to ``layer4``
    maps of stride 4 to 32. Raises ConfigError for an unknown name.
    """
    block, depths = registry.choice("ResNet", SIZES, name)
    parts: dict[str, nn.Module] = {
        "conv1": _conv(3, WIDTHS[0], 7, stride=2),
        "bn1": nn.BatchNorm2d(WIDTHS[0]),
        "relu": nn.ReLU(inplace=True),
        "maxpool": nn.MaxPool2d(3, stride=2, padding=1),
    }
    inputs = WIDTHS[0]
    for number, (width, depth) in enumerate(zip(WIDTHS, depths, strict=True), start=1):
        blocks = []
        for k in range(depth):
            blocks.append(block(inputs, width, stride=2 if k == 0 and number > 1 else 1))
            inputs = width * block.expansion
        parts[f"layer{number}"] = nn.Sequential(*blocks)
    nn.Linear(inputs, CLASSES)  # takes from the generator what torchvision's classifier takes before the weights below
    for part in parts.values():
        for module in part.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return parts


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """What brings a block's input to the size of its output; None where it has that already."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


def _join(block: Block, x: Tensor, y: Tensor) -> Tensor:
    """Add a block's input x to its branch y."""
    y += x if block.downsample is None else block.downsample(x)
    joined: Tensor = block.relu(y)
    return joined
