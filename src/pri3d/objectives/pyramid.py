"""View's contrast on the encoder's own maps, which are what users export (paper section 3.1, Eq. 1)."""

from __future__ import annotations

from torch.nn import functional as F

from pri3d.api.options import Options, option
from pri3d.api.pretrain import MIN_TEMPERATURE, ContrastOptions
from pri3d.geometry.matching import cell_pixels, choose, match_pixels
from pri3d.networks.encoders import sample_maps
from pri3d.objectives import VIEWS, Features, Setup, Terms
from pri3d.objectives.view import PointContrast
from pri3d.types import PairBatch


class PyramidOptions(Options):
    """Contrast of the encoder's maps at the points that both frames of a pair see."""

    group = "pyramid"

    points: int = option("matches per pair in the contrast", default=512, least=2)
    temperature: float = option("temperature: divides the cosine similarities", default=0.1, least=MIN_TEMPERATURE)
    exclude_px: float = option(
        "radius in pixels around the positive within which points are not used as negatives", default=4.0, least=0
    )


class PyramidObjective(PointContrast):
    """PointInfoNCE between the encoder's maps of both frames, all maps as one feature a point.

    The paper contrasts the U-Net's output, which an encoder that is good already reaches through a decoder with random
    weights. Here the feature of a point is that of :func:`pri3d.networks.encoders.join_maps`, each map's vector of
    length 1, taken at the points alone. Points lie on a grid of half the image; which match is the run's
    :class:`pri3d.api.pretrain.MatchingOptions`. Neighbours of a point, which good features hold similar rightly, are no
    negatives.

    Raises ConfigError without an encoder and for numbers that cannot be.
    """

    options = PyramidOptions
    decodes = False

    def __init__(self, setup: Setup, options: PyramidOptions = PyramidOptions()) -> None:  # noqa: B008 (frozen)
        encoder = setup.encoder_for("pyramid", options)
        super().__init__(setup._replace(contrast=ContrastOptions(**dict(options.items()))))
        self.matching, self.strides = setup.matching, encoder.strides

    def forward(self, features: Features, batch: PairBatch) -> Terms:
        """Contrast the encoder's maps of both frames of a batch of pairs."""
        depth, intrinsics, poses = batch.depth, batch.intrinsics, batch.world_from_camera
        height, width = batch.color.shape[-2:]
        grid = ((height + 1) // 2, (width + 1) // 2)
        matches = match_pixels(depth, intrinsics, poses, grid, self.matching.distance, self.matching.match)
        matches = choose(matches, self.points, batch.seeds)
        centres = cell_pixels(grid, depth)
        places = [centres[matches.first], centres[matches.second]]
        unit = [F.normalize(x.float(), dim=1).view(len(depth), -1, *x.shape[1:]) for x in features.maps]
        first, second = (
            sample_maps([x[:, batch.views.index(view)] for x in unit], self.strides, at)
            for view, at in zip(VIEWS[:2], places, strict=True)
        )
        return self.score(first, second, matches.valid, places)
