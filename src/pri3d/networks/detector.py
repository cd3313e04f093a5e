"""Mask R-CNN with a feature pyramid on any encoder (paper sections 5.2 and 5.3).

torchvision's, which stands where the released code has Detectron2's with settings of another family of weights. Here
images are RGB in 0..1 and are normalised with the encoder's own mean and deviation, and a ResNet's stride lies in its
3 x 3 convolutions: what the encoders were pre-trained with, and what torchvision's and timm's weights expect.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNN, MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from pri3d.networks.encoders import Encoder, build_encoder

STRIDES = (4, 8, 16, 32)  #: of the pyramid's levels; a fifth of stride 64 is pooled from the last
ROI = 7  #: cells of a region's edge, for the box head


class Sizes(NamedTuple):
    """How large a Mask R-CNN is and what it looks at."""

    fpn: int = 256  #: channels of the pyramid
    box: int = 1024  #: channels of the box head's linear layers
    box_convs: int = 0  #: convolutions before the one linear layer of the box head; 0: two linear layers
    norms: bool = False  #: batch norms in the pyramid and after the box head's convolutions
    mask: int = 256  #: channels of the mask head
    mask_convs: int = 4  #: its convolutions
    anchor: int = 32  #: edge of the finest level's anchors, pixels of the resized image; doubles with each level
    candidates_train: int = 2000  #: of a level, from the region proposal network
    candidates_test: int = 1000  #: the same at test time
    proposals: int = 1000  #: of an image, once overlapping candidates are gone
    rois: int = 512  #: of those, how many train the heads
    detections: int = 100  #: most objects of an image
    score: float = 0.05  #: least score of a detection
    short_sides: tuple[int, ...] = (640, 672, 704, 736, 768, 800)  #: pixels; training draws one, the last is for test
    long_side: int = 1333  #: most pixels of the other side


#: The paper's: Detectron2's R50-FPN.
FULL = Sizes()
#: The released code's for COCO: a box head of four convolutions and a linear layer, norms there and in the pyramid.
COCO = Sizes(box_convs=4, norms=True)
#: For a processor: about a tenth of the work.
LITE = Sizes(
    fpn=128,
    box=256,
    mask=64,
    mask_convs=2,
    anchor=16,
    candidates_train=100,
    candidates_test=100,
    proposals=100,
    rois=32,
    detections=20,
    short_sides=(240,),
    long_side=320,
)
SIZES = {"full": FULL, "coco": COCO, "lite": LITE}


class Pyramid(nn.Module):
    """Encoder and feature pyramid: normalised images (B, 3, H, W) -> maps "0" to "3" of STRIDES and "pool".

    Of an encoder's maps of stride 4 and more, each level takes that of its stride, or the nearest. One of another
    stride is projected, then resized: a ViT's maps, all of one stride, become the levels in the order of their depth.
    """

    def __init__(self, encoder: Encoder, channels: int, norms: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        # Of the nearest stride, of several the deepest; maps that all have one stride in the order of their depth.
        strides, count = encoder.strides, len(encoder.strides)
        if len(set(strides)) == 1:
            self.levels = [k * count // len(STRIDES) for k in range(len(STRIDES))]
        else:
            self.levels = [min(range(count), key=lambda k: (abs(math.log2(strides[k] / s)), -k)) for s in STRIDES]
        resized = [encoder.strides[k] != stride for k, stride in zip(self.levels, STRIDES, strict=True)]
        widths = [channels if r else encoder.channels[k] for k, r in zip(self.levels, resized, strict=True)]
        self.project = nn.ModuleList(
            nn.Conv2d(encoder.channels[k], channels, 1) if r else nn.Identity()
            for k, r in zip(self.levels, resized, strict=True)
        )
        norm = nn.BatchNorm2d if norms else None
        self.fpn = FeaturePyramidNetwork(widths, channels, extra_blocks=LastLevelMaxPool(), norm_layer=norm)
        self.out_channels = channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised images -> maps, finest first, see the class."""
        maps = self.encoder(images)
        height, width = images.shape[-2:]
        levels = OrderedDict()
        for name, (k, project, stride) in enumerate(zip(self.levels, self.project, STRIDES, strict=True)):
            x = project(maps[k])
            size = (-(-height // stride), -(-width // stride))
            if x.shape[-2:] != size:
                x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
            levels[str(name)] = x
        # The anchors get the maps' type, and half precision cannot tell neighbouring pixels apart beyond 256.
        return {name: x.float() for name, x in self.fpn(levels).items()}


class Detector(nn.Module):
    """Mask R-CNN; ``classes`` are the countable ones, without a background.

    The images are resized inside, so that boxes and masks, given and found, are in pixels of the images given.
    """

    def __init__(self, encoder: Encoder, classes: int, sizes: Sizes = FULL) -> None:
        super().__init__()
        self.classes, self.sizes = classes, sizes
        pyramid = Pyramid(encoder, sizes.fpn, sizes.norms)  # first: the heads draw their weights after it
        edges = tuple((sizes.anchor * 2**level,) for level in range(len(STRIDES) + 1))
        box_head: nn.Module  # two linear layers, or convolutions and one
        if sizes.box_convs:
            convs, norm = [sizes.fpn] * sizes.box_convs, nn.BatchNorm2d if sizes.norms else None
            box_head = FastRCNNConvFCHead((sizes.fpn, ROI, ROI), convs, [sizes.box], norm_layer=norm)
        else:
            box_head = TwoMLPHead(sizes.fpn * ROI**2, sizes.box)
        self.net: Any = MaskRCNN(
            pyramid,
            min_size=sizes.short_sides,
            max_size=sizes.long_side,
            image_mean=list(encoder.statistics[0]),
            image_std=list(encoder.statistics[1]),
            rpn_anchor_generator=AnchorGenerator(edges, ((0.5, 1.0, 2.0),) * len(edges)),
            rpn_pre_nms_top_n_train=sizes.candidates_train,
            rpn_pre_nms_top_n_test=sizes.candidates_test,
            rpn_post_nms_top_n_train=sizes.proposals,
            rpn_post_nms_top_n_test=sizes.proposals,
            box_head=box_head,
            box_predictor=FastRCNNPredictor(sizes.box, classes + 1),
            box_batch_size_per_image=sizes.rois,
            box_detections_per_img=sizes.detections,
            box_score_thresh=sizes.score,
            mask_head=MaskRCNNHeads(sizes.fpn, (sizes.mask,) * sizes.mask_convs, 1),
            mask_predictor=MaskRCNNPredictor(sizes.mask, sizes.mask, classes + 1),
        )
        for head in (self.net.rpn.head, self.net.roi_heads.box_predictor):
            head.register_forward_hook(_in_full)

    @property
    def encoder(self) -> Encoder:
        """The image encoder inside."""
        encoder: Encoder = self.net.backbone.encoder
        return encoder

    def forward(self, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]] | None = None) -> Any:
        """Images (3, H, W) RGB 0..1 of any sizes -> in train mode losses by name, else a dictionary per image.

        A target has ``boxes`` (N, 4) x0, y0, x1, y1, ``labels`` (N,) int64 1..classes and ``masks`` (N, H, W) uint8; N
        may be 0. A prediction has the same, best first, with ``scores`` (N,) and ``masks`` (N, 1, H, W) 0..1.
        """
        return self.net(list(images), None if targets is None else list(targets))


def build_detector(encoder: str, classes: int, sizes: Sizes = FULL) -> Detector:
    """Untrained Mask R-CNN on an encoder by name. Raises ConfigError for an unknown encoder."""
    return Detector(build_encoder(encoder), classes, sizes)


def _in_full(_module: nn.Module, _inputs: Any, outputs: Any) -> Any:
    """Hook: a head's outputs in float32, as boxes are computed in their type and must not be in that of autocast."""
    if isinstance(outputs, Tensor):
        return outputs.float()
    return type(outputs)(_in_full(_module, _inputs, part) for part in outputs)
