from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from finetuned import TINY, instance_task
from pri3d.data.labelled import InstanceDataset
from pri3d.data.sampler import Draw
from pri3d.errors import DataError, WeightsError
from pri3d.labelled import open_labelled
from pri3d.labelled.convert import to_coco
from pri3d.labelled.prepared import PreparedImages
from pri3d.networks.detector import SIZES, build_detector
from pri3d.networks.encoders import build_encoder
from pri3d.networks.load import WeightsSource
from pri3d.networks.lora import add_lora
from pri3d.networks.state_files import read_state
from pri3d.networks.weights import read_provenance, save_state
from pri3d.tasks import evaluating, load_task
from pri3d.tasks.instance import InstanceRecipe, InstanceTask, average_precision
from pri3d.types import Detections


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(SIZES, "lite", TINY)


@pytest.fixture(scope="module")
def images(rooms_store):
    return PreparedImages(rooms_store, "all")


@pytest.fixture
def task(images):
    return InstanceTask(InstanceTask.names_of(images))


def detector(task, encoder="test_resnet", sizes=TINY):
    torch.manual_seed(0)
    return build_detector(encoder, len(task.class_names), sizes)


class Oracle(torch.nn.Module):
    """Says what it was told, image by image, whatever it sees."""

    def __init__(self, found):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.found = list(found)
        self.batches = []

    def forward(self, images, targets=None):
        assert not self.training and not torch.is_grad_enabled()
        self.batches.append(len(images))
        return [self.found.pop(0) for _ in images]


def truth_of(dataset):
    """What the oracle needs to be right: the objects of each image, worst first."""
    for k in range(len(dataset)):
        item = dataset[Draw(0, k)]
        count = len(item.classes)
        yield {
            "boxes": item.boxes,
            "labels": item.classes + 1,
            "masks": item.masks[:, None].float(),
            "scores": torch.linspace(0.5, 0.9, count),
        }


def test_a_prediction_is_written_in_cocos_form(task):
    mask = np.zeros((1, 8, 10), bool)
    mask[0, 2:5, 3:7] = True
    found = Detections(mask, np.float32([[3, 2, 7.25, 5.5]]), np.array([1]), np.float32([0.75]))
    (written,) = task.record(found)["objects"]
    assert written["bbox"] == [3, 2, 4.25, 3.5]
    assert (written["area"], written["score"], written["class"]) == (12, 0.75, task.class_names[1])


def test_classes_are_the_countable_ones(images):
    assert InstanceTask.names_of(images) == images.thing_names
    assert "wall" not in InstanceTask.names_of(images)


def test_sets_without_objects_are_refused(images, monkeypatch):
    monkeypatch.setattr(images, "has_objects", False)
    with pytest.raises(DataError, match="has no instance maps"):
        InstanceTask.names_of(images)
    monkeypatch.undo()
    monkeypatch.setattr(images, "things", [])
    with pytest.raises(DataError, match="none of its classes is countable"):
        InstanceTask.names_of(images)


def test_ground_truth_is_read_once_a_run(images, task, monkeypatch):
    """Every validation scores against the same; another data set has its own."""
    read = []

    def counted(*args):
        read.append(args)
        return to_coco(*args)

    monkeypatch.setattr("pri3d.tasks.instance.to_coco", counted)
    few, more = InstanceDataset(images, rows=[0, 1], min_area=20), InstanceDataset(images, rows=[2, 3], min_area=20)
    for dataset, times in ((few, 1), (few, 1), (more, 2), (few, 3)):
        assert task.measure(Oracle(truth_of(dataset)), dataset, 2)["AP"] == pytest.approx(1.0)
        assert len(read) == times


def test_loss_is_the_sum_of_its_parts(images, task):
    dataset = InstanceDataset(images, rows=[0, 1])
    batch = InstanceRecipe.collate([dataset[Draw(0, k)] for k in range(2)])
    loss, log = task.loss(detector(task).train(), batch)
    assert set(log) == {"classifier", "box_reg", "mask", "objectness", "rpn_box_reg"}
    assert float(loss.detach()) == pytest.approx(sum(map(float, log.values())), rel=1e-5)
    assert loss.requires_grad and not any(value.requires_grad for value in log.values())


def test_classes_reach_the_network_above_the_background(images, task):
    dataset = InstanceDataset(images, rows=[0])
    batch = InstanceRecipe.collate([dataset[Draw(0, 0)]])
    given = []

    def remember(images, targets):
        given.extend(targets)
        return {"loss_mask": torch.zeros((), requires_grad=True)}

    task.loss(remember, batch)
    assert len(batch.classes[0]) > 0
    assert torch.equal(given[0]["labels"], batch.classes[0] + 1)


@pytest.mark.parametrize("batch", [1, 3])
def test_an_oracle_scores_one(images, task, batch):
    dataset = InstanceDataset(images, rows=[1, 0, 5, 9], min_area=20)
    oracle = Oracle(truth_of(dataset))
    scores = task.measure(oracle.train(), dataset, batch)
    assert oracle.training
    assert oracle.batches == ([1] * 4 if batch == 1 else [3, 1])
    for name in ("AP", "AP50", "AP75", "box_AP", "box_AP50", "box_AP75"):
        assert scores[name] == pytest.approx(1.0)
        assert scores[f"paper_{name}"] == pytest.approx(1.0)
    assert set(scores["classes"]) == set(task.class_names)
    seen = {int(kind) for k in range(4) for kind in dataset[Draw(0, k)].classes}
    for k, name in enumerate(task.class_names):
        assert scores["classes"][name] == pytest.approx(1.0) if k in seen else math.isnan(scores["classes"][name])


def test_confused_classes_score_less(images, task):
    dataset = InstanceDataset(images, rows=[0, 1], min_area=20)
    found = [{**f, "labels": f["labels"] % len(task.class_names) + 1} for f in truth_of(dataset)]
    assert task.measure(Oracle(found), dataset, 2)["AP"] < 0.5


def test_the_papers_protocol_leaves_weak_objects_out(images, task):
    """Half of the objects with a score of 0.4: they count for AP, and are missed at 0.5."""
    dataset = InstanceDataset(images, rows=[0, 1], min_area=20)
    found = list(truth_of(dataset))
    for one in found:
        one["scores"] = torch.where(torch.arange(len(one["scores"])) % 2 == 0, 0.4, 0.9)
    scores = task.measure(Oracle(list(found)), dataset, 2)
    assert scores["AP"] == scores["box_AP"] == pytest.approx(1.0)
    strict = average_precision(to_coco(images, [0, 1], 20), results_of(task, Oracle(found), dataset), 0.5)
    assert strict["AP"] < 0.8
    for name in ("AP", "AP50", "AP75", "box_AP", "box_AP50", "box_AP75"):
        assert scores[f"paper_{name}"] == pytest.approx(strict[name])


def results_of(task, model, dataset, rows=None):
    """What a meter gathers, in the order of the images."""
    meter = task.meter(dataset)
    with evaluating(model):
        for k in range(len(dataset)) if rows is None else rows:
            meter.update(model, InstanceRecipe.collate([dataset[Draw(0, k)]]))
    return meter if rows is not None else meter.results()


def test_what_processes_gather_is_what_one_gathers(images, task):
    dataset = InstanceDataset(images, rows=[2, 3, 5, 7], min_area=20)
    found = list(truth_of(dataset))
    alone = results_of(task, Oracle(found), dataset)
    shares = [results_of(task, Oracle(found[k::2]), dataset, range(k, 4, 2)) for k in range(2)]
    merged = task.meter(dataset)
    merged.merge([json.loads(json.dumps(share.state())) for share in shares])
    assert merged.results() == alone
    assert merged.result()["AP"] == pytest.approx(1.0)


def test_validation_reads_no_mask_but_those_of_the_truth(images, task, monkeypatch):
    dataset = InstanceDataset(images, rows=[0, 1], min_area=20, objects=False)
    found = list(truth_of(InstanceDataset(images, rows=[0, 1], min_area=20)))
    read, stored = [], PreparedImages.instances
    monkeypatch.setattr(PreparedImages, "instances", lambda self, k: read.append(k) or stored(self, k))
    for _ in range(2):
        assert task.measure(Oracle(found), dataset, 2)["AP"] == pytest.approx(1.0)
    assert read == [0, 1]


def test_results_are_scored_from_a_file_alike(images, task):
    dataset = InstanceDataset(images, rows=[2, 3], min_area=20)
    cached = json.loads(json.dumps(results_of(task, Oracle(truth_of(dataset)), dataset)))
    truth = json.loads(json.dumps(to_coco(images, dataset.rows, 20)))
    assert average_precision(truth, cached)["AP"] == pytest.approx(1.0)
    assert average_precision(truth, cached, min_score=0.95)["AP"] == 0


def test_predictions_are_sorted_and_count_classes_from_zero(images, task):
    dataset = InstanceDataset(images, rows=[0])
    (expected,) = truth_of(dataset)
    found = task.predict(Oracle([expected]).eval(), images.color(0))
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    assert found.classes.tolist() == (expected["labels"] - 1).flip(0).tolist()
    assert found.masks.dtype == bool and np.array_equal(found.masks[0], expected["masks"][-1, 0].numpy() > 0.5)
    assert found.boxes.dtype == found.scores.dtype == np.float32 and found.classes.dtype == np.int64


def test_predictions_have_the_images_size(task):
    model = detector(task, sizes=TINY._replace(score=0.0)).eval()
    found = task.predict(model, np.random.default_rng(0).integers(0, 256, (37, 51, 3), np.uint8))
    assert len(found.scores) > 0 and found.masks.shape[1:] == (37, 51)
    nothing = task.predict(detector(task, sizes=TINY._replace(score=1.0)).eval(), np.zeros((37, 51, 3), np.uint8))
    assert nothing.masks.shape == (0, 37, 51) and nothing.boxes.shape == (0, 4)


@pytest.mark.parametrize("encoder", ["test_resnet", "test_vit"])
def test_a_file_gives_the_same_network_back(images, task, encoder, tmp_path, monkeypatch):
    monkeypatch.setitem(SIZES, "lite", TINY._replace(score=0.0))
    model = detector(task, encoder, SIZES["lite"])
    if encoder == "test_vit":
        assert add_lora(model.encoder, 2) > 0
        with torch.no_grad():
            for up in [p for name, p in model.encoder.named_parameters() if name.endswith(".up")]:
                up.add_(0.1)
    model.eval()
    path = tmp_path / "weights.safetensors"
    task = instance_task(task.class_names, model)
    task.save(model, path, {"steps": 7})
    trained = load_task(path)
    assert trained.record["steps"] == 7 and trained.record["network"] == "maskrcnn"
    assert trained.task.class_names == task.class_names and not trained.model.training
    assert trained.model.sizes == model.sizes
    ours, theirs = task.predict(model, images.color(0)), trained.task.predict(trained.model, images.color(0))
    assert len(ours.scores) > 0
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    again = tmp_path / "again.safetensors"
    trained.task.save(trained.model, again, {"steps": 7})
    first, second = read_state(path), read_state(again)
    assert list(first) == list(second) and read_provenance(path) == read_provenance(again)
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_a_detectors_encoder_starts_another_network(task, tmp_path):
    model = detector(task)
    instance_task(task.class_names, model).save(model, tmp_path / "weights.safetensors", {})
    encoder = build_encoder("test_resnet")
    report = WeightsSource(str(tmp_path), on_hub=False).fill(encoder)
    assert report is not None and report.coverage == 1.0 and not report.missing
    for key, value in model.encoder.state_dict().items():
        assert torch.equal(encoder.state_dict()[key], value)


def test_what_does_not_fit_is_refused(task, tmp_path):
    model = detector(task)
    path = tmp_path / "weights.safetensors"
    instance_task(task.class_names, model).save(model, path, {})
    state, record = read_state(path), read_provenance(path)
    settings, own = record["settings"], record["settings"]["instance"]
    save_state(state, path, {key: value for key, value in record.items() if key != "settings"})
    with pytest.raises(WeightsError, match="does not state how"):
        load_task(path)
    for change in ({"depth": 3}, {"long_side": 10**12}, {"rois": 10**12}, {"rois": "x"}):
        save_state(state, path, {**record, "settings": {**settings, "instance": {**own, **change}}})
        with pytest.raises(WeightsError, match="does not state how"):
            load_task(path)
    save_state(state, path, {**record, "settings": {**settings, "instance": {**own, "detector": "full"}}})
    with pytest.raises(WeightsError, match="does not fit the network"):
        load_task(path)
    save_state(state, path, {**record, "class_names": ["one"]})
    with pytest.raises(WeightsError, match="does not fit the network"):
        load_task(path)
    del state["rpn.head.cls_logits.weight"]
    save_state(state, path, record)
    with pytest.raises(WeightsError, match=r"rpn\.head\.cls_logits\.weight"):
        load_task(path)


def test_a_file_of_version_01_states_sizes_and_gives_the_same_network(images, task, tmp_path):
    sizes = TINY._replace(rois=8, short_sides=(48, 80), long_side=96)
    model = detector(task, sizes=sizes).eval()
    path = tmp_path / "weights.safetensors"
    state = {k.removeprefix("net.").removeprefix("backbone."): v for k, v in model.state_dict().items()}
    record = {"task": "instance", "network": "maskrcnn", "encoder": "test_resnet", "class_names": task.class_names}
    save_state(state, path, {**record, "sizes": sizes._asdict()})
    trained = load_task(path)
    assert trained.model.sizes == sizes
    options = trained.task.settings.own["instance"]
    assert (options.detector, options.short_side) == ("lite", "48-80")
    ours, theirs = task.predict(model, images.color(0)), trained.task.predict(trained.model, images.color(0))
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    for change in ({"fpn": 10**12}, {"depth": 3}, {"short_sides": 3}):
        save_state(state, path, {**record, "sizes": {**sizes._asdict(), **change}})
        with pytest.raises(WeightsError, match="does not state how"):
            load_task(path)


@pytest.mark.thorough
def test_an_oracle_scores_one_on_real_images(real_data):
    coco = open_labelled(real_data / "coco_tiny", "val", "coco")
    dataset = InstanceDataset(coco, rows=range(6))
    scores = InstanceTask(InstanceTask.names_of(coco)).measure(Oracle(truth_of(dataset)), dataset, 4)
    assert scores["AP"] == scores["box_AP"] == pytest.approx(1.0)
    assert 5 < sum(not math.isnan(value) for value in scores["classes"].values()) < 80
