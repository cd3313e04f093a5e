"""Runs of the paper's size state what the paper states: every setting is the paper's, or stands in the list below."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pri3d.reproduction.matrix import build_matrix, find_experiment, find_study
from pri3d.reproduction.work import StudyFolder, settings_of
from pri3d.runs import leaves

#: what the paper states of a pre-training (sections 3 and 4): start -> setting -> value
EVERY: dict[str, Any] = {"lr": 0.1, "steps": 60000, "batch": 64, "optim.optimizer": "sgd", "optim.schedule": "step"}
PAIRS: dict[str, Any] = {**EVERY, "weights": "imagenet", "matching.distance": 0.02, "matching.match": "point"}
GEO: dict[str, Any] = {"geometry.voxel": 0.02, "geometry.voxel_input": "occupancy", "geometry.chunks": 2}
MOCO: dict[str, Any] = {"batch": 256, "objectives.moco": 1.0}
PRETRAINED: dict[str, dict[str, Any]] = {
    "view": {**PAIRS, "objectives.view": 1.0},
    "geo": {**PAIRS, **GEO, "objectives.geometry": 1.0},
    "view+geo": {**PAIRS, **GEO, "objectives.view": 1.0, "objectives.geometry": 1.0},
    "trivial": {**EVERY, "weights": "imagenet", "objectives.trivial": 1.0},
    "depth": {**EVERY, "weights": "imagenet", "objectives.depth": 1.0},
    # 100 epochs of 840,000 frames, and of ImageNet's 1,281,167 images beside them
    "moco": {**MOCO, "weights": "imagenet", "steps": 328125, "moco.mix": "frames"},
    "moco-combine": {**MOCO, "weights": "scratch", "steps": 828581, "moco.mix": "combine"},
    "moco-mixed": {**MOCO, "weights": "scratch", "steps": 1000912, "moco.mix": "half"},
}
#: what it states of a fine-tuning: network -> setting -> value; 80 epochs of 19,466 and of 795 images
FINETUNED: dict[str, dict[str, Any]] = {
    "unet": {"batch": 64, "lr": 0.01, "optim.schedule": "poly"},
    **{network: {} for network in ("pspnet", "deeplabv3", "deeplabv3plus", "maskrcnn")},
}
STEPS = {("unet", "labelled"): 24333, ("unet", "other"): 994, ("pspnet", "labelled"): 60832}
#: settings that the paper says nothing of; their values are the released code's or ours (docs/paper-vs-code.md)
SILENT_PRETRAINING = {
    "tune": "the whole encoder learns",
    "augment": "the released code's colours; of trivial the paper names the kinds",
    "micro_batch": "passes of a step, which change no gradient but batch norm's statistics",
    "precision": "arithmetic",
    "compute": "use of the hardware",
    "unet": "decoder as published, channels by encoder, one pass over both frames",
    "size": "the released code's 320x240",
    "interpolation": "the released code takes the nearest pixel, which aliases",
    "keep": "0, no term of the paper",
    "holdout": "0: training takes all pairs",
    "min_overlap": "the paper's 0.3, which its pairs were chosen by",
    "validation": "nothing is measured without held-out pairs",
    "backbone": "encoder and heads learn alike",
    "contrast": "unit length, temperature 0.4, 1024 points: the released code's",
    "optim": "momentum and dampening are the released code's; MoCo's are those of its own paper",
    "lr": "of MoCo, by its own paper",
    "matching": "of objectives that do not match",
    "geometry": "topology and widths of the 3D network are the released code's",
    "moco": "crops, queue, momentum, temperature by its own paper",
    "depth": "the released code's loss",
    "trivial": "feature cells without replacement",
    "view": "",
    "encoder": "both are the paper's",
    "seed": "",
}
SILENT_FINETUNING = {
    **{name: SILENT_PRETRAINING[name] for name in ("tune", "augment", "micro_batch", "precision", "compute", "seed")},
    "encoder": "both are the paper's",
    "network": "the table's",
    "mirror": "the released code's, of PSPNet and Mask R-CNN",
    "backbone": "momentum of norms and rate of heads, of DeepLab and PSPNet: the released code's",
    "validation": "how often is measured",
    "fraction": "of the labels, the table's",
    "optim": "momentum, dampening and decay are the released code's",
    "semantic": "size, decoder, channels by encoder, no class weights: the released code's",
    "instance": "Detectron2's and the released code's",
    "steps": "of networks whose length the released code alone states",
    "batch": "of networks whose batch the released code alone states",
    "lr": "of networks whose rate the released code alone states",
}
#: options that a run of the paper's size is given beside its preset
GIVEN = {"preset", "encoder", "seed", "images", "task", "fraction", "weights", "labels", "epochs", "steps", "part"}
TABLES = [("scannet", name) for name in ("table1", "table2", "table3", "table4", "figure5", "figure4")]
TABLES += [("nyuv2", name) for name in ("table5", "table6", "table7")]


@pytest.mark.parametrize("encoder", ["resnet50", "resnet18"])
@pytest.mark.parametrize(("on", "name"), TABLES)
def test_a_paper_run_states_the_papers_settings(on: str, name: str, encoder: str, tmp_path: Path) -> None:
    experiment, study = find_experiment(name), find_study(on, "paper")
    place = StudyFolder(tmp_path, study, {"scannet_frames": tmp_path, "nyuv2": tmp_path})
    matrix = build_matrix(experiment, study, (0,), experiment.fractions, ("imagenet",), encoder)
    for run in matrix.runs:
        assert set(run.options) <= GIVEN, run.name
        stated = {".".join(way): value for way, value in leaves(settings_of(place, run).stated())}
        if run.verb == "pretrain":
            paper, silent = PRETRAINED[run.name.partition("/")[2].removesuffix("-seed0")], SILENT_PRETRAINING
        else:
            paper, silent = dict(FINETUNED[stated["network"]]), SILENT_FINETUNING
            if (steps := STEPS.get((stated["network"], run.parts[0]))) is not None:
                paper["steps"] = pytest.approx(run.options["fraction"] * steps, abs=1)
        assert {key: stated[key] for key in paper} == paper, run.name
        assert {key.partition(".")[0] for key in stated if key not in paper} <= set(silent), run.name


@pytest.mark.parametrize(("on", "name"), TABLES)
def test_decoder_and_encoder_are_taken_where_the_paper_takes_them(on: str, name: str) -> None:
    """Section 4: of segmentation both are pre-trained. MoCo has no decoder, and a detector takes the encoder."""
    experiment, study = find_experiment(name), find_study(on, "paper")
    matrix = build_matrix(experiment, study, (0,), (1.0,), ("imagenet",))
    for run in (run for run in matrix.runs if run.verb == "finetune"):
        moco = run.after is not None and "/moco" in run.after
        assert run.options.get("part") == ("encoder" if moco and experiment.task == "semantic" else None), run.name


def test_fewer_labels_are_as_many_epochs(tmp_path: Path) -> None:
    study = find_study("scannet", "paper")
    place = StudyFolder(tmp_path, study, {"scannet_frames": tmp_path})
    for name, whole in (("figure5", 24333), ("table4", None), ("table2", 90000)):
        runs = build_matrix(find_experiment(name), study, (0,), (0.2, 1.0)).runs
        steps = {run.name: settings_of(place, run).steps for run in runs if run.verb == "finetune"}
        for full in (key for key in steps if "fraction" not in key):
            assert whole in (None, steps[full])
            assert steps[full.replace("-seed0", "-fraction0.2-seed0")] == pytest.approx(0.2 * steps[full], abs=1)
