"""Parts of pre-training: the U-Net with its objectives, its meter, and its pairs or crops."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from pri3d.api.pretrain import PretrainSettings
from pri3d.data.augment import recipe
from pri3d.data.crops import (
    CropDataset,
    CropRecipe,
    ImageFolder,
    PairFrames,
    Source,
    check_crops,
    collate_crops,
    crop_table,
    frame_table,
)
from pri3d.data.measured import MeasuredFrames, choose_evenly, read_frames
from pri3d.data.mixture import Mixture
from pri3d.data.pairs import (
    MixedPairs,
    PairDataset,
    angle_bins,
    check_pairs,
    collate,
    draw_pairs,
    split_pairs,
)
from pri3d.data.sampler import BalancedSampler, MixedSampler, StreamSampler, derive
from pri3d.errors import ConfigError, DataError, Problems
from pri3d.geometry.matching import choose, match_pixels
from pri3d.geometry.resize import parse_size
from pri3d.geometry.voxels import coarsen
from pri3d.networks.encoders import join_maps
from pri3d.networks.tuning import fix_norms, limit, mixed
from pri3d.networks.unet import UNet
from pri3d.networks.weights import save_model
from pri3d.objectives import VIEWS, Features, Setup, WeightedSum
from pri3d.objectives.quality import PairPart, PairQuality, cell_distance
from pri3d.store import Store
from pri3d.tasks import Meter
from pri3d.training.loop import Feed, StepModule
from pri3d.training.optim import ParameterGroup
from pri3d.types import CropBatch, PairBatch

ENCODER_POINTS = 128  #: matches a held-out pair that are looked for on the encoder's maps, which have many channels
MOST_FRAMES = 64  #: frames that read-outs are fitted to, and as many to score them on


class PretrainModule(StepModule):
    """The U-Net under the weighted sum of the objectives."""

    settings: PretrainSettings

    def __init__(self, settings: PretrainSettings, unet: UNet) -> None:
        super().__init__(settings)
        self.unet = unet
        # Before objectives copy the encoder, adapters included.
        self.fixed = [*limit(unet.encoder, settings.tune), *fix_norms(unet.encoder, settings.backbone.norm)]
        setup = Setup(unet.channels, unet.encoder, settings.contrast, settings.matching)
        self.objective = WeightedSum(settings.active, setup, settings.own)
        #: images of a pair that are shown to the network; one at least, for objectives that take whatever is there
        self.views = () if settings.crops_alone else self.objective.views or VIEWS[:1]
        self._maps = _Maps(unet, self.objective.decodes)
        whole = settings.backbone.mix == 1
        self._initial = {} if whole else {key: x.clone() for key, x in unet.encoder.state_dict().items()}
        if not self.objective.decodes:
            unet.decoder.requires_grad_(False)  # nothing looks at its output
            self.idle = "unet.decoder."

        if settings.backbone.delay and not any(p.requires_grad for p in self._others()):
            raise ConfigError(
                f"--backbone.delay {settings.backbone.delay}: only the encoder is trained. Leave it out, or add an "
                f"objective with a head, such as view."
            )

    def _others(self) -> list[nn.Parameter]:
        """Parameters of the decoder and the objectives."""
        encoder = {id(p) for p in self.unet.encoder.parameters()}
        return [p for p in self.parameters() if id(p) not in encoder]

    def parameter_groups(self) -> list[ParameterGroup]:
        """The encoder at the learning rate, after its delay, and everything on it at ``head_lr`` times that."""
        backbone = self.settings.backbone
        if backbone.head_lr == 1 and not backbone.delay:
            return super().parameter_groups()  # one group, as in checkpoints of earlier versions
        encoder = ParameterGroup(self.unet.encoder.parameters(), delay=backbone.delay)
        return [encoder, ParameterGroup(self._others(), backbone.head_lr)]

    @property
    def network(self) -> nn.Module:
        """The U-Net; the 3D network's shapes change at every step."""
        return self._maps

    def loss(self, batch: PairBatch | CropBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """All images of all pairs in one pass, or one pass for each view; then the objectives (paper section 3.3)."""
        for module in self.fixed:
            module.eval()
        if self.settings.unet.bn_schedule == "decay":
            for norm in self.modules():
                if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                    # The released code's: one half, halved every 20 steps, at least 0.001.
                    norm.momentum = max(0.5 ** (1 + self.step // 20), 0.001)
        terms = self.objective(self.features(batch), batch)
        return terms.loss, terms.log

    def features(self, batch: PairBatch | CropBatch) -> Features:
        """What the U-Net makes of the images; empty where no objective looks at it."""
        if isinstance(batch, CropBatch):
            return Features(batch.crops.new_empty(0), [], ())
        count = batch.color.shape[1]
        parts = (
            [batch.color] if self.settings.unet.passes == "joint" else [batch.color[:, k : k + 1] for k in range(count)]
        )
        layout = torch.channels_last if self.settings.compute.channels_last else torch.contiguous_format
        passes = [self._maps(part.flatten(0, 1).contiguous(memory_format=layout)) for part in parts]
        if len(passes) == 1:
            dense, maps = passes[0]
            return Features(dense.view(-1, count, *dense.shape[1:]), maps, batch.views)
        dense = torch.stack([dense for dense, _ in passes], dim=1)
        maps = [torch.stack(level, dim=1).flatten(0, 1) for level in zip(*(maps for _, maps in passes), strict=True)]
        return Features(dense, maps, batch.views)

    def meter(self, dataset: Dataset[Any]) -> PairMeter:
        """Quality of the features, and recall of the encoder's maps by viewing angle."""
        return PairMeter(self)

    @property
    def measured(self) -> nn.Module:
        """The U-Net."""
        return self.unet

    @property
    def key(self) -> str:
        """The encoder's gain over the start, which :class:`pri3d.training.watch.Guard` adds."""
        return "gain"

    def mixed(self) -> AbstractContextManager[None]:
        """Context in which the encoder is what users get: ``backbone.mix`` of its change since the start."""
        return mixed(self.unet.encoder, self._initial, self.settings.backbone.mix)

    def save(self, path: Path, record: Mapping[str, Any]) -> None:
        """Write the U-Net; its encoder alone where no objective trains the decoder."""
        save_model(self.unet, path, record, decoder=self.objective.decodes)

    def after_step(self) -> None:
        """Tell the objectives."""
        self.objective.after_step()


class _Maps(nn.Module):
    """The U-Net's :meth:`UNet.forward_maps` as a call, which is what can be compiled.

    Without the decoder, the encoder's maps are measured in the place of its own; no objective looks at either.
    """

    def __init__(self, unet: UNet, decodes: bool) -> None:
        super().__init__()
        self._unet = (unet,)  # in a tuple PyTorch does not see it: its parameters are the module's already
        self.decodes = decodes

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        (unet,) = self._unet
        if self.decodes:
            return unet.forward_maps(images)
        maps = unet.encoder(unet.encoder.normalise(images))
        if unet.training:
            return images.new_empty(len(images), 1, 1, 1), maps
        half = ((images.shape[-2] + 1) // 2, (images.shape[-1] + 1) // 2)
        return join_maps(maps, unet.encoder.strides, half), maps


class MeterPart(NamedTuple):
    """What :class:`PairMeter` keeps of a batch of B pairs."""

    quality: PairPart  #: of the U-Net's features
    counts: Tensor  #: (B, 2) float32: points, and points found on the encoder's maps
    degrees: Tensor  #: (B,) float32 between the viewing directions


class PairMeter(Meter):
    """:class:`PairQuality` of the features of a pre-training network, and recall of its encoder's maps by angle."""

    def __init__(self, module: PretrainModule) -> None:
        super().__init__()
        self.module = module

    def update(self, model: nn.Module, batch: PairBatch) -> None:
        """Add a batch of pairs."""
        batch = move_data_to_device(batch, next(model.parameters()).device)
        matching, encoder = self.module.settings.matching, self.module.unet.encoder
        features = self.module.features(batch)
        quality = PairQuality()
        quality.update(features, batch, distance=matching.distance, match=matching.match)
        grid = (int(features.dense.shape[-2]), int(features.dense.shape[-1]))
        with torch.autocast(features.dense.device.type, enabled=False):
            maps = join_maps([x.float() for x in features.maps], encoder.strides, grid)
            geometry = batch.depth, batch.intrinsics, batch.world_from_camera
            matches = choose(
                match_pixels(*geometry, grid, matching.distance, matching.match), ENCODER_POINTS, batch.seeds
            )
            pairs = zip(maps.view(len(batch.depth), -1, *maps.shape[1:]), matches.first, matches.second, strict=True)
            gaps = torch.stack([cell_distance(two, first, second) for two, first, second in pairs])
            found = (gaps * (quality.width / grid[1]) <= quality.pixels) & matches.valid
            ahead = batch.world_from_camera[:, :, :3, 2].double()  # the viewing directions
            cosine = F.cosine_similarity(ahead[:, 0], ahead[:, 1], dim=-1)
        counts = torch.stack((matches.valid.sum(dim=1), found.sum(dim=1)), dim=1).float()
        self.parts.append(MeterPart(quality.parts[0], counts, torch.rad2deg(cosine.clamp(-1, 1).arccos()).float()))

    def state(self) -> list[Any]:
        """Return the parts on the CPU."""
        return [_move(part, torch.device("cpu")) for part in self.parts]

    def merge(self, states: Iterable[list[Any]]) -> None:
        """Take the parts of all processes, on the device of the network."""
        super().merge(states)
        device = next(self.module.parameters()).device
        self.parts = [_move(part, device) for part in self.parts]

    def result(self) -> dict[str, Any]:
        """Of the U-Net's features recall, alignment, uniformity, rank and the number of points.

        Of the encoder's maps ``encoder_recall``, the mean over the bins of the angle that hold points, and
        ``recall_by_angle``, that of each such bin; NaN where none does.
        """
        quality = PairQuality()
        quality.parts = [part.quality for part in self.parts]
        by_angle: dict[str, float] = {}
        if self.parts:
            counts = torch.cat([part.counts for part in self.parts]).cpu().numpy()
            degrees = torch.cat([part.degrees for part in self.parts]).cpu().numpy()
            for name, inside in angle_bins(degrees).items():
                points, found = counts[inside].sum(axis=0, dtype=np.float64).tolist()
                if points:
                    by_angle[name] = found / points
        mean = sum(by_angle.values()) / len(by_angle) if by_angle else math.nan
        return {**quality.result(), "encoder_recall": mean, "recall_by_angle": by_angle}


def _move(part: MeterPart, device: torch.device) -> MeterPart:
    return MeterPart(PairPart(*(x.to(device) for x in part.quality)), part.counts.to(device), part.degrees.to(device))


class Portion(NamedTuple):
    """One store of a run."""

    store: Store
    weight: int  #: how often it is drawn from, against the others' weights
    train: NDArray[np.int64]  #: rows of its pair table
    held: NDArray[np.int64]  #: and those kept out of training


class PretrainData:
    """The data of a run, checked before anything is built.

    Args:
        mixture: prepared pairs, of one store or several.
        settings: of the run.
    """

    def __init__(self, mixture: Mixture, settings: PretrainSettings) -> None:
        self.settings = settings
        self.images: Path | None = settings.own["moco"].images if "moco" in settings.own else None
        table = crop_table if settings.crops_alone else Store.pairs
        self.portions = [
            Portion(*part, *split_pairs(part.store, settings.holdout, table(part.store), settings.min_overlap))
            for part in mixture.parts
        ]
        self.weights = [portion.weight for portion in self.portions]
        self.several = len(self.portions) > 1

    @cached_property
    def folder(self) -> ImageFolder | None:
        """Further images; listed once."""
        return None if self.images is None else ImageFolder(self.images)

    def check(self) -> None:
        """Refuse what would fail later. Raises ConfigError or DataError, naming every problem at once."""
        problems = Problems()
        with problems.collect():
            parse_size(self.settings.size)
        with problems.collect():
            recipe(self.settings.augment)
        for portion in self.portions:
            with problems.collect():
                # Of crops from one store as many images as a batch has are asked for below.
                if self.several or not self.settings.crops_alone:
                    share = self.settings.micro_batch * portion.weight // sum(self.weights)
                    check_pairs(portion.train, portion.store, max(1, share), self.settings.min_overlap)
            with problems.collect():
                if {"view", "distill", "pyramid"} & set(
                    self.settings.active
                ) and self.settings.matching.match != "relative":
                    records = portion.store.manifest["scenes"]
                    unknown = [scene for scene, record in records.items() if record.get("scale") is not None]
                    if unknown:
                        raise ConfigError(
                            f"{portion.store.path}: the unit of {len(unknown)} scenes is not known "
                            f"({', '.join(unknown[:3])}), so a distance in metres is undefined. Match relative to "
                            f"the depth: --matching.match relative --matching.distance 0.02."
                        )
            with problems.collect():
                if "geometry" in self.settings.own:
                    voxel = self.settings.own["geometry"].voxel
                    if voxel <= 0:
                        raise ConfigError(f"--geometry.voxel {voxel}: the geometry objective needs an edge in metres.")
                    scenes = (portion.store.scene(scene) for scene in portion.store.scenes)
                    if not any(len(coarsen(scene.surface(), voxel).cells) for scene in scenes):
                        text = "no scene has a surface, which geometry needs. Prepare with --surface."
                        raise DataError(f"{portion.store.path}: {text}")
        with problems.collect():
            mix = self.settings.own["moco"].mix if "moco" in self.settings.own else "frames"
            mixed = mix != "frames"
            if mixed and self.images is None:
                raise ConfigError(f"--moco.mix {mix}: give the folder of further images with --moco.images.")
            if self.several and mix == "combine":
                raise ConfigError(
                    "--moco.mix combine: shuffles all frames and images together, so several prepared datasets cannot "
                    "have weights. Choose --moco.mix half, or give only one."
                )
            if self.images is not None and not (mixed and self.settings.crops_alone):
                raise ConfigError(
                    f"--moco.images {self.images}: further images are only used by moco alone: --objectives "
                    "'{moco: 1}' with --moco.mix combine, half or alternate."
                )
            if self.settings.crops_alone:
                check_crops(self._crops(), self.settings.micro_batch)
        problems.refuse()

    def feed(self, views: tuple[str, ...]) -> Feed:
        """Batches of the training data with the images that the objectives want."""
        seed, batch = self.settings.seed, self.settings.batch
        if self.settings.crops_alone:
            # Of the frames' stores, and of the images as one more source that weighs as much as all of them.
            crops, mix = self._crops(), self.settings.own["moco"].mix
            weights = [*self.weights, sum(self.weights)] if self.folder is not None else self.weights

            def sampler(total: int, start: int) -> StreamSampler:
                if mix == "alternate":
                    return MixedSampler(crops.sizes, weights, total, seed, start, batch)
                if self.several:
                    return BalancedSampler(crops.sizes, weights, total, seed, start, batch)
                if mix == "half":
                    return MixedSampler(crops.sizes, weights, total, seed, start)
                return StreamSampler(len(crops), total, seed, start)

            return Feed(crops, collate_crops, sampler)
        parts = [
            self._pairs(portion.store, portion.train, views, derived, training=True)
            for portion, derived in zip(self.portions, self._seeds(), strict=True)
        ]
        geometry = self.settings.own.get("geometry")
        bounded = collate if geometry is None else partial(collate, most=geometry.max_voxels)
        if not self.several:
            return Feed(parts[0], bounded, lambda total, start: StreamSampler(len(parts[0]), total, seed, start))
        mixed = MixedPairs(parts)
        return Feed(
            mixed,
            bounded,
            lambda total, start: BalancedSampler(mixed.sizes, self.weights, total, seed, start, batch),
        )

    def heldout(self) -> PairDataset | MixedPairs | None:
        """Held-out pairs to measure on, of all viewing angles alike, drawn with the seed; without augmentation.

        None where nothing is measured.
        Of several stores each has its share by weight of them, as far as it has so many.
        """
        held = any(len(portion.held) for portion in self.portions)
        if self.settings.validation.every <= 0 or not held or self.settings.crops_alone:
            return None
        parts = []
        for portion, seed in zip(self.portions, self._seeds(), strict=True):
            most = max(1, self.settings.validation.pairs * portion.weight // sum(self.weights))
            drawn = draw_pairs(portion.store.pairs().angle[portion.held], most, seed)
            parts.append(self._pairs(portion.store, portion.held[drawn], ("first", "second"), seed, training=False))
        return MixedPairs(parts) if self.several else parts[0]

    def frames(self) -> tuple[MeasuredFrames, MeasuredFrames]:
        """Frames to fit read-outs to, and held-out ones to score them on: evenly spaced, without augmentation.

        Of several stores each has its share by weight of them, as far as it has so many.
        """
        sides: list[list[MeasuredFrames]] = [[], []]
        for portion in self.portions:
            table = frame_table(portion.store)
            most = max(1, MOST_FRAMES * portion.weight // sum(self.weights))
            for side, rows in zip(sides, split_pairs(portion.store, self.settings.holdout, table), strict=True):
                if len(rows):
                    chosen = choose_evenly(rows, most)
                    side.append(read_frames(portion.store, table, chosen, parse_size(self.settings.size), None))
        joined = []
        for side in sides:
            columns = [torch.cat(column) for column in list(zip(*side, strict=True))[:4]] or [torch.empty(0)] * 4
            joined.append(MeasuredFrames(columns[0], columns[1], columns[2], columns[3], 0))
        return joined[0], joined[1]

    def _seeds(self) -> list[int]:
        """Of each store's random choices: the run's own, or of several stores unlike ones."""
        seed = self.settings.seed
        return [derive(seed, place) for place in range(len(self.portions))] if self.several else [seed]

    def _pairs(
        self, store: Store, rows: NDArray[np.int64], views: tuple[str, ...], seed: int, training: bool
    ) -> PairDataset:
        settings = self.settings
        geometry, moco, distill = (settings.own.get(name) for name in ("geometry", "moco", "distill"))
        return PairDataset(
            store.path,
            rows,
            parse_size(settings.size),
            seed,
            recipe(settings.augment) if training else None,
            geometry.voxel if training and geometry else 0.0,
            geometry.chunks if geometry else 2,
            settings.interpolation,
            views,
            CropRecipe(size=moco.crop) if training and moco else None,
            clean=bool(training and distill and distill.clean and recipe(settings.augment)),
        )

    def _crops(self) -> CropDataset:
        sources: list[Source] = [PairFrames(portion.store.path, portion.train) for portion in self.portions]
        if self.folder is not None:
            sources.append(self.folder)
        return CropDataset(sources, self.settings.seed, CropRecipe(size=self.settings.own["moco"].crop))
