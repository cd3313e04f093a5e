"""What a pre-training run draws from: pairs, crops or both, and the pairs it is measured on."""

from __future__ import annotations

from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np

from pri3d.data.augment import recipe
from pri3d.data.crops import CropDataset, CropRecipe, ImageFolder, PairFrames, Source, check_crops, collate_crops
from pri3d.data.pairs import PairDataset, check_pairs, check_unit, collate, split_pairs
from pri3d.data.sampler import MixedSampler, StreamSampler, derive
from pri3d.errors import ConfigError, DataError, Problems
from pri3d.geometry.images import parse_size
from pri3d.geometry.voxels import coarsen
from pri3d.store import Store
from pri3d.train.engine import Feed
from pri3d.train.settings import PretrainSettings


class Plan:
    """The data of a run, checked before anything is built.

    Args:
        store: prepared pairs.
        settings: of the run.
        images: folder of further images for moco, or None.
    """

    def __init__(self, store: Store, settings: PretrainSettings, images: Path | None) -> None:
        self.store, self.settings, self.images = store, settings, images
        self.train, self.held = split_pairs(store, settings.holdout)

    @property
    def watched(self) -> bool:
        """Whether there is something to measure, and pairs to measure it on."""
        return self.settings.eval_every > 0 and len(self.held) > 0 and not self.settings.crops_alone

    @cached_property
    def folder(self) -> ImageFolder | None:
        """Further images; listed once."""
        return None if self.images is None else ImageFolder(self.images)

    @property
    def images_hash(self) -> str:
        """Changes with the names of the further images, whose order is that of the stream; empty without any."""
        return "" if self.folder is None else sha256(b"\0".join(self.folder.names.tolist())).hexdigest()

    def check(self) -> None:
        """Refuse what would fail later. Raises ConfigError or DataError, naming every problem at once."""
        problems = Problems()
        with problems.collect():
            parse_size(self.settings.size)
        with problems.collect():
            recipe(self.settings.augment)
        with problems.collect():
            if not self.settings.crops_alone:
                check_pairs(self.train, self.store, self.settings.micro_batch)
        with problems.collect():
            if "view" in self.settings.weights and self.settings.match != "relative":
                check_unit(self.store)
        with problems.collect():
            self._check_surface()
        with problems.collect():
            self._check_images()
            if self.settings.crops_alone:
                check_crops(self._crops(), self.settings.micro_batch)
        problems.refuse()

    def feed(self, views: tuple[str, ...]) -> Feed:
        """Batches of the training data with the images that the objectives want."""
        seed = self.settings.seed
        if self.settings.crops_alone:
            crops = self._crops()
            if self.settings.mix in {"frames", "combine"}:
                return Feed(crops, collate_crops, lambda total, start: StreamSampler(len(crops), total, seed, start))
            even = (1,) * len(crops.sizes)
            block = self.settings.batch if self.settings.mix == "alternate" else 1
            return Feed(
                crops, collate_crops, lambda total, start: MixedSampler(crops.sizes, even, total, seed, start, block)
            )
        pairs = self._pairs(self.train, views, training=True)
        return Feed(pairs, collate, lambda total, start: StreamSampler(len(pairs), total, seed, start))

    def heldout(self) -> PairDataset:
        """Held-out pairs to measure on, drawn with the seed; without augmentation."""
        rows, most = self.held, self.settings.eval_pairs
        if len(rows) > most:
            generator = np.random.default_rng(derive(self.settings.seed))
            rows = np.sort(generator.choice(rows, most, replace=False))
        return self._pairs(rows, ("first", "second"), training=False)

    def _pairs(
        self, rows: np.ndarray[tuple[int], np.dtype[np.int64]], views: tuple[str, ...], training: bool
    ) -> PairDataset:
        settings = self.settings
        return PairDataset(
            self.store.path,
            rows,
            parse_size(settings.size),
            settings.seed,
            recipe(settings.augment) if training else None,
            settings.voxel if training and "geometry" in settings.weights else 0.0,
            settings.chunks,
            settings.interpolation,
            views,
            CropRecipe(size=settings.crop) if training and "moco" in settings.weights else None,
        )

    def _crops(self) -> CropDataset:
        sources: list[Source] = [PairFrames(self.store.path, self.train)]
        if self.folder is not None:
            sources.append(self.folder)
        return CropDataset(sources, self.settings.seed, CropRecipe(size=self.settings.crop))

    def _check_surface(self) -> None:
        if "geometry" not in self.settings.weights:
            return
        if self.settings.voxel <= 0:
            raise ConfigError(f"--voxel {self.settings.voxel}: the geometry objective needs an edge in metres.")
        scenes = (self.store.scene(scene) for scene in self.store.scenes)
        if not any(len(coarsen(scene.surface(), self.settings.voxel).cells) for scene in scenes):
            raise DataError(f"{self.store.path}: no scene has a surface, which geometry needs. Prepare with --surface.")

    def _check_images(self) -> None:
        mixed = self.settings.mix != "frames"
        if mixed and self.images is None:
            raise ConfigError(f"--mix {self.settings.mix}: name the folder of further images with --images.")
        if self.images is not None and not (mixed and self.settings.crops_alone):
            raise ConfigError(
                f"--images {self.images}: only moco by itself learns from further images: --objectives '{{moco: 1}}' "
                "with --mix combine, half or alternate."
            )
