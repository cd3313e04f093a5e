"""Losses against slow loops, mIoU against torchmetrics and loops, predictions, files, and that each network learns."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassJaccardIndex

from finetuned import load_semantic, save_semantic, semantic_settings, semantic_task
from pri3d.api.presets import overlay
from pri3d.data.labelled import LabelledDataset
from pri3d.errors import ConfigError, DataError, WeightsError
from pri3d.geometry.resize import resize_color
from pri3d.labelled import LabelledImages
from pri3d.networks.encoders import build_encoder
from pri3d.networks.lora import add_lora
from pri3d.networks.segmentation import NETWORKS, SegmentationNet, build_segmentation
from pri3d.networks.state_files import read_state
from pri3d.networks.unet import build_unet
from pri3d.networks.weights import load_model, load_weights, read_provenance, save_state
from pri3d.tasks import load_task
from pri3d.tasks.semantic import (
    IGNORED,
    ClassCounts,
    Confusion,
    SemanticTask,
    class_weights,
    count_classes,
    semantic_loss,
)
from pri3d.types import LabelledBatch

NAMES = ["wall", "floor", "chair", "lamp"]
RGB = ["red", "green", "blue"]


class Images(LabelledImages):
    """A set in memory."""

    def __init__(self, colors, labels, class_names=NAMES) -> None:
        self.path, self.class_names, self.things = "memory", class_names, []
        self.names = [f"image {k}" for k in range(len(colors))]
        self.colors, self.labels = colors, labels

    @classmethod
    def detect(cls, path):
        return False

    def color(self, k):
        return self.colors[k]

    def label(self, k):
        return self.labels[k]


class Unlabelled(Images):
    label = LabelledImages.label


class Paint(nn.Module):
    """Scores are the image's colours: class 0 where it is red."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.sizes = []

    def forward(self, images):
        self.sizes.append(tuple(images.shape))
        return images * self.gain


def build(network: str, encoder: str = "resnet18", classes: int = 4) -> SegmentationNet:
    torch.manual_seed(0)
    return build_segmentation(network, build_encoder(encoder), classes, "slim", 8)


def labels(seed: int, classes: int = 4, used: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(used, (3, 8, 9), generator=generator)
    predicted = torch.where(torch.rand(label.shape, generator=generator) < 0.6, label, (label + 1) % classes)
    label[torch.rand(label.shape, generator=generator) < 0.1] = IGNORED
    return predicted, label


def slow_loss(scores, label, weights) -> float:
    total, mass, scores = 0.0, 0.0, scores.detach()
    for b, i, j in np.ndindex(*label.shape):
        k = int(label[b, i, j])
        if k != IGNORED:
            values = [float(v) for v in scores[b, :, i, j]]
            total += weights[k] * (math.log(sum(math.exp(v) for v in values)) - values[k])
            mass += weights[k]
    return total / mass if mass else 0.0


class TestLoss:
    @given(st.integers(0, 10**6), st.lists(st.sampled_from([0.0, 0.2, 1.0, 7.0]), min_size=4, max_size=4))
    @settings(max_examples=15)
    def test_it_equals_slow_loops(self, seed, weights):
        _, label = labels(seed)
        scores = torch.randn(3, 4, 8, 9, generator=torch.Generator().manual_seed(seed))
        weighted = semantic_loss(scores, label, torch.tensor(weights))
        assert float(weighted) == pytest.approx(slow_loss(scores, label, weights), rel=1e-5)
        assert float(semantic_loss(scores, label)) == pytest.approx(slow_loss(scores, label, [1.0] * 4), rel=1e-5)

    def test_small_weights_are_a_mean_too(self):
        _, label = labels(0)
        scores = torch.randn(3, 4, 8, 9)
        tiny = semantic_loss(scores, label, torch.full((4,), 1e-6))
        torch.testing.assert_close(tiny, semantic_loss(scores, label))

    @pytest.mark.parametrize("weights", [None, torch.ones(4), torch.zeros(4)])
    def test_nothing_that_counts_trains_nothing(self, weights):
        label = torch.full((1, 4, 4), 0 if weights is not None and not weights.any() else IGNORED)
        scores = torch.randn(1, 4, 4, 4, requires_grad=True)
        loss = semantic_loss(scores, label, weights)
        loss.backward()
        assert float(loss.detach()) == 0
        assert scores.grad is not None
        assert (scores.grad == 0).all()

    @pytest.mark.thorough
    def test_auxiliary_scores_count_two_fifths(self):
        model = build("pspnet").train()
        batch = LabelledBatch(torch.rand(2, 3, 16, 24), labels(1)[1][:2, :8].repeat(1, 2, 3)[:, :, :24], ["a", "b"])
        torch.manual_seed(5)
        main, auxiliary = (slow_loss(scores, batch.label, (1, 2, 0, 1)) for scores in model(batch.color, every=True))
        torch.manual_seed(5)
        loss, log = SemanticTask(NAMES, weights=(1, 2, 0, 1)).loss(model, batch)
        assert float(loss.detach()) == pytest.approx(main + 0.4 * auxiliary, rel=1e-4)
        assert {name: float(value) for name, value in log.items()} == pytest.approx(
            {"main": main, "auxiliary": auxiliary}, rel=1e-4
        )
        assert SemanticTask(NAMES).loss(build("unet"), batch)[1] == {}

    @pytest.mark.parametrize("weights", [(1, 1, 1), (1, 1, 1, -1), (1, 1, 1, math.nan)])
    def test_weights_that_cannot_be(self, weights):
        with pytest.raises(ConfigError, match="one of 0 or more for each of the 4 classes"):
            SemanticTask(NAMES, weights=weights)

    @pytest.mark.thorough
    @pytest.mark.parametrize("network", NETWORKS)
    def test_a_small_batch_is_learnt(self, network):
        model, task = build(network).train(), SemanticTask(NAMES)
        generator = torch.Generator().manual_seed(0)
        label = torch.randint(4, (2, 2, 3), generator=generator).repeat_interleave(16, 1).repeat_interleave(16, 2)
        shades = torch.rand(4, 3, generator=generator)
        batch = LabelledBatch(shades[label].permute(0, 3, 1, 2).contiguous(), label, ["a", "b"])
        optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
        losses: list[float] = []
        for _ in range(5):
            loss, _log = task.loss(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < 0.6 * losses[0]


class TestClassWeights:
    def test_counts_and_weights_equal_loops(self):
        rng = np.random.default_rng(0)
        maps = [rng.choice([*range(used), IGNORED], (6 + k, 7)).astype(np.uint8) for k, used in enumerate((2, 3, 1, 3))]
        images = Images([None] * 4, maps, [*NAMES, "never"])
        rows = [3, 0, 1]
        counts = count_classes(images, rows, 5)
        shares = {}
        for k in range(5):
            having = [maps[row] for row in rows if (maps[row] == k).any()]
            assert counts.pixels[k] == sum((m == k).sum() for m in having)
            assert counts.around[k] == sum((m != IGNORED).sum() for m in having)
            if having:
                shares[k] = counts.pixels[k] / counts.around[k]
        median = float(np.median(list(shares.values())))
        expected = [median / shares[k] if k in shares else 1.0 for k in range(5)]
        assert class_weights(counts) == pytest.approx(expected)
        every = count_classes(images, None, 5)
        assert every.pixels.sum() == sum((m != IGNORED).sum() for m in maps)

    def test_even_classes_weigh_the_same_and_rare_ones_more(self):
        even = ClassCounts(np.array([10, 10, 10]), np.array([30, 30, 30]))
        assert class_weights(even) == pytest.approx([1, 1, 1])
        rare = class_weights(ClassCounts(np.array([900, 90, 10]), np.array([1000, 1000, 1000])))
        assert rare == pytest.approx([0.1, 1, 9])

    def test_without_any_label_there_is_nothing_to_balance(self):
        counts = count_classes(Images([None], [np.full((3, 3), IGNORED, np.uint8)]), None, 4)
        with pytest.raises(DataError, match="no class occurs"):
            class_weights(counts)


class TestConfusion:
    @pytest.mark.parametrize("used", [2, 4])
    @pytest.mark.parametrize("seed", range(4))
    def test_miou_equals_torchmetrics_and_a_loop(self, seed, used):
        """With 2 classes in the ground truth, one more is predicted in places and one never occurs."""
        predicted, label = labels(seed, used=used)
        confusion = Confusion(NAMES)
        for one, two in zip(predicted, label, strict=True):
            confusion.add(one, two)
        score = confusion.score()
        keep = label != IGNORED
        for k, name in enumerate(NAMES):
            both = ((predicted == k) & (label == k) & keep).sum().item()
            either = (((predicted == k) | (label == k)) & keep).sum().item()
            assert (
                score.iou[name] == pytest.approx(both / either, nan_ok=True) if either else math.isnan(score.iou[name])
            )
        each = MulticlassJaccardIndex(4, ignore_index=IGNORED, average="none")(predicted, label)
        assert score.miou == pytest.approx(float(each[:used].mean()), abs=1e-6)
        assert score.accuracy == pytest.approx(float((predicted == label)[keep].float().mean()))

    def test_absent_class_does_not_count_but_a_false_one_does(self):
        confusion = Confusion(NAMES)
        confusion.add(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 0, 1, 1]))
        score = confusion.score()
        assert score.iou["floor"] == pytest.approx(0.5)
        assert score.iou["chair"] == 0.0
        assert math.isnan(score.iou["lamp"])
        assert score.miou == pytest.approx(0.75)

    def test_everything_ignored_is_nan(self):
        confusion = Confusion(NAMES)
        assert math.isnan(confusion.score().miou)
        confusion.add(torch.zeros(1, 4, 4), torch.full((1, 4, 4), IGNORED))
        assert math.isnan(confusion.score().miou)

    def test_what_processes_gather_is_what_one_gathers(self):
        predicted, label = labels(3)
        alone, shares = Confusion(NAMES), [Confusion(NAMES) for _ in range(3)]
        for one, two, share in zip(predicted, label, shares, strict=True):
            alone.add(one, two)
            share.add(one, two)
        merged = Confusion(NAMES)
        merged.merge([*(share.state() for share in shares), Confusion(NAMES).state()])
        assert merged.score() == alone.score()


def painted(count: int, size: tuple[int, int], seed: int = 0) -> Images:
    rng = np.random.default_rng(seed)
    colors = [rng.integers(256, size=(*size, 3), dtype=np.uint8) for _ in range(count)]
    maps = [rng.choice([0, 1, 2, IGNORED], size).astype(np.uint8) for _ in range(count)]
    return Images(colors, maps, RGB)


class TestMeasure:
    def test_every_image_counts_once_whatever_the_batch(self):
        images = painted(5, (6, 8))
        reference = Confusion(RGB)
        for color, label in zip(images.colors, images.labels, strict=True):
            reference.add(torch.from_numpy(color.argmax(-1)), torch.from_numpy(label))
        model, task = Paint().train(), SemanticTask(RGB)
        for batch in (2, 5, 7):
            assert task.measure(model, LabelledDataset(images, (8, 6)), batch) == reference.result()
        assert model.training
        assert [size[0] for size in model.sizes] == [2, 2, 1, 5, 5]
        assert not model.eval().training
        task.measure(model, LabelledDataset(images, (8, 6), rows=[1]), 2)
        assert not model.training

    def test_the_mode_is_back_and_dropout_was_off(self):
        images, model, task = (
            painted(2, (32, 48)),
            build("pspnet", classes=3).train(),
            SemanticTask(RGB, semantic_settings(size="48x32")),
        )
        dataset = LabelledDataset(images, (48, 32))
        first = task.measure(model, dataset, 1)  # one image at a time is no training
        assert first == task.measure(model, dataset, 2)
        assert all(m.training for m in model.modules())


class TestPredict:
    def test_at_its_own_size_every_pixel_is_its_own(self):
        color = painted(1, (11, 17)).colors[0]
        predicted = SemanticTask(RGB).predict(Paint().eval(), color)
        assert predicted.dtype == np.uint8
        assert np.array_equal(predicted, color.argmax(-1))

    def test_scores_of_the_training_size_are_enlarged_before_the_best_is_taken(self):
        color = painted(1, (12, 16)).colors[0]
        model = Paint().eval()
        task = SemanticTask(RGB)
        task.size = (8, 6)
        predicted = task.predict(model, color)
        assert model.sizes == [(1, 3, 6, 8)]
        small = torch.from_numpy(resize_color(color, (8, 6))).permute(2, 0, 1)[None].float() / 255
        large = F.interpolate(small, size=(12, 16), mode="bilinear", align_corners=False)
        assert np.array_equal(predicted, large[0].argmax(0).numpy())
        assert not np.array_equal(predicted, np.kron(small[0].argmax(0).numpy(), np.ones((2, 2))))

    def test_a_task_of_another_package_may_change_what_this_one_predicts(self):
        class Later(SemanticTask):
            def predict(self, model, color):
                return super().predict(model, color) + 1

        colors = painted(3, (6, 9)).colors
        wanted = [SemanticTask(RGB).predict(Paint().eval(), color) + 1 for color in colors]
        found = Later(RGB).predict_many(Paint().eval(), colors)
        assert all(np.array_equal(one, two) for one, two in zip(found, wanted, strict=True))

    @pytest.mark.parametrize("size", [(5, 7), (40, 30), (1, 1)])
    def test_any_size_and_a_fortran_order(self, size):
        color = np.asfortranarray(painted(1, size).colors[0])
        assert SemanticTask(RGB, semantic_settings(size="16x16")).predict(Paint(), color).shape == size


class TestFiles:
    @pytest.mark.thorough
    @pytest.mark.parametrize("network", NETWORKS)
    def test_scores_are_the_same_to_the_bit(self, tmp_path, network):
        model = build(network).train()
        task = semantic_task(NAMES, model)
        model(torch.rand(2, 3, 32, 48), every=True)  # statistics of its own
        task.save(model.eval(), tmp_path / "weights.safetensors", {"init": "scratch"})
        trained = load_task(tmp_path)
        assert isinstance(trained.task, SemanticTask)
        assert (trained.task.class_names, trained.task.size) == (NAMES, (64, 48))
        assert trained.record["init"] == "scratch"
        assert (trained.model.network, trained.model.training) == (network, False)
        images = torch.rand(1, 3, 49, 63)
        with torch.no_grad():
            assert torch.equal(trained.model(images), model(images))

    def test_the_encoder_of_any_network_starts_another(self, tmp_path):
        model, encoder = build("pspnet"), build_encoder("resnet18")
        save_semantic(model, tmp_path / "w.safetensors", NAMES, {})
        report = load_weights(encoder, tmp_path / "w.safetensors", prefix="encoder.")
        assert report.coverage == 1
        assert torch.equal(encoder.layer4[1].conv2.weight, model.encoder.layer4[1].conv2.weight)

    def test_a_task_without_settings_cannot_be_built_again(self, tmp_path):
        with pytest.raises(TypeError, match="SemanticTask was created without settings"):
            SemanticTask(NAMES).save(build("unet"), tmp_path / "w.safetensors", {})

    @pytest.mark.thorough
    def test_adapters_are_merged(self, tmp_path):
        model = build("deeplabv3plus", "vit_tiny_patch16_224")
        add_lora(model.encoder, 2)
        for name, p in model.named_parameters():
            if name.endswith(".up"):
                nn.init.normal_(p, std=0.1)
        save_semantic(model.eval(), tmp_path / "w.safetensors", NAMES, {})
        loaded, images = load_semantic(tmp_path / "w.safetensors")[0], torch.rand(1, 3, 48, 64)
        assert list(loaded.encoder.state_dict()) == list(build_encoder("vit_tiny_patch16_224").state_dict())
        with torch.no_grad():
            assert torch.equal(loaded(images), model(images))

    @pytest.mark.thorough
    def test_a_unets_file_is_that_of_a_pretrained_one_with_a_classifier(self, tmp_path):
        torch.manual_seed(0)
        unet, path = build_unet("resnet18", "slim", 8).eval(), tmp_path / "w.safetensors"
        classifier = nn.Conv2d(8, 4, 1)
        state = unet.state_dict() | {f"classifier.{key}": value for key, value in classifier.state_dict().items()}
        record = {"encoder": "resnet18", "decoder": "slim", "channels": 8, "task": "semantic", "class_names": NAMES}
        record |= {"network": "unet", "size": "96x64"}
        save_state(state, path, record)  # as version 0.1 wrote it
        model, names = load_semantic(path)
        assert load_task(path).task.size == (96, 64)
        assert names == NAMES
        images = torch.rand(1, 3, 32, 48)
        with torch.no_grad():
            expected = F.interpolate(classifier(unet(images)), size=(32, 48), mode="bilinear", align_corners=False)
            assert torch.equal(model(images), expected)
        save_semantic(model, path, names, {})
        assert read_state(path).keys() == state.keys()
        again = read_provenance(path)
        assert {key: again[key] for key in record if key != "size"} == {k: v for k, v in record.items() if k != "size"}
        assert torch.equal(load_model(path)[0].decoder.out.weight, unet.decoder.out.weight)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"semantic": {"decoder": "paper"}}, "does not fit the network its header names"),
            ({"semantic": {"decoder": "other"}}, "does not state how its network is built"),
            ({"semantic": 3}, "does not state how its network is built"),
            ({"semantic": {"channels": 10**12}}, "does not fit the network its header names"),
            ({"semantic": {"channels": 10**30}}, "a whole number in it has more than 64 bits"),
            ({"semantic": {"channels": "8"}}, "does not state how its network is built"),
            ({"network": "pspnet"}, "does not fit the network its header names"),
            ({"encoder": "resnet50"}, "does not fit the network its header names"),
            ({"encoder": "nothing"}, "does not fit the network its header names"),
            ({"steps": 0}, "does not state how its network is built"),
            ({"other": 1}, "does not state how its network is built"),
            ({"lr": "x"}, "does not state how its network is built"),
        ],
    )
    def test_another_network_is_refused(self, tmp_path, change, message):
        path = tmp_path / "w.safetensors"
        save_semantic(build("unet", "convnext_atto"), path, NAMES, {})
        record = read_provenance(path)
        record["settings"] = overlay(record["settings"], change)
        save_state(read_state(path), path, record)
        with pytest.raises(WeightsError, match=message):
            load_semantic(path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"class_names": ["wall"]}, "does not fit the network its header names"),
            ({"class_names": None}, "does not state how its network is built"),
            ({"channels": 10**12}, "does not fit the network its header names"),
            ({"decoder": "paper"}, "does not fit the network its header names"),
            ({"size": "small"}, "does not state how its network is built"),
            ({"encoder": None, "channels": None}, "does not state how its network is built \\('encoder'\\)"),
        ],
    )
    def test_a_damaged_record_of_version_01_is_refused(self, tmp_path, change, message):
        path = tmp_path / "w.safetensors"
        save_semantic(build("unet", "convnext_atto"), path, NAMES, {})
        record = {k: v for k, v in (read_provenance(path) | change).items() if v is not None and k != "settings"}
        save_state(read_state(path), path, record)
        with pytest.raises(WeightsError, match=message):
            load_semantic(path)

    def test_the_record_is_plain_json(self, tmp_path):
        save_semantic(build("pspnet"), tmp_path / "w.safetensors", NAMES, {"decoder": "slim"})
        record = read_provenance(tmp_path / "w.safetensors")
        assert json.loads(json.dumps(record)) == record
        assert record["network"] == "pspnet"


def test_the_names_are_all_classes_and_class_maps_are_needed():
    assert SemanticTask.names_of(painted(1, (4, 4))) == RGB
    with pytest.raises(DataError, match="memory: has no class maps"):
        SemanticTask.names_of(Unlabelled([None], [None], RGB))
    with pytest.raises(TypeError, match="a semantic task needs a SegmentationNet, not a Paint"):
        SemanticTask(RGB).loss(Paint(), LabelledBatch(torch.rand(1, 3, 8, 8), torch.zeros(1, 8, 8).long(), ["a"]))
