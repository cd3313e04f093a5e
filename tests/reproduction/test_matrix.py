"""Which runs an experiment needs: every experiment in every study, the paper's figures, what is shared and left out."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from pri3d.errors import ConfigError
from pri3d.reproduction.matrix import build_matrix, experiments, find_experiment, find_study, groups, stated
from pri3d.reproduction.work import StudyFolder, settings_of

STUDIES = [(on, size) for on, sizes in stated("studies").items() for size in sizes]


def matrix(name: str, on: str = "rooms", size: str = "small", seeds: tuple[int, ...] = (0,), **options):  # type: ignore[no-untyped-def]
    experiment, study = find_experiment(name), find_study(on, size)
    return build_matrix(experiment, study, seeds, options.pop("fractions", experiment.fractions), **options)


@pytest.mark.parametrize(("on", "size"), STUDIES)
@pytest.mark.parametrize("name", experiments())
def test_settings_of_every_run_resolve(name: str, on: str, size: str, tmp_path: Path) -> None:
    folders = {"scannet_frames": tmp_path, "nyuv2": tmp_path}  # empty: the study says how many images there are
    if find_experiment(name).data not in find_study(on, size).settings["parts"]:
        with pytest.raises(ConfigError, match="not available"):
            matrix(name, on, size)
        return
    found = matrix(name, on, size, folders=("imagenet",))
    assert found.parts
    for run in found.runs:
        settings = settings_of(StudyFolder(tmp_path, find_study(on, size), folders), run)
        assert settings.encoder == run.options["encoder"]
        assert settings.seed == 0


@pytest.mark.parametrize(
    ("name", "row", "encoder", "fraction", "figures"),
    [
        ("table1", "Scratch", "resnet18", 1.0, [37.5]),
        ("table1", "Pri3D (View+Geo)", "resnet50", 1.0, [61.7]),
        ("table2", "Pri3D (Geo)", "resnet50", 1.0, [44.2, 27.6, 26.6]),
        ("table3", "Pri3D (View+Geo)", "resnet50", 1.0, [35.8, 19.3, 18.7]),
        ("table4", "Pri3D, PSPNet", "resnet50", 1.0, [62.8]),
        ("table5", "Pri3D (Geo)", "resnet18", 1.0, [48.6]),
        ("table6", "MoCoV2-supIN->SN", "resnet50", 1.0, [30.1, 18.1, 17.3]),
        ("table7", "Pri3D (View+Geo)", "resnet50", 1.0, [29.5, 16.3, 15.8]),
        ("figure5", "Pri3D (View+Geo)", "resnet50", 0.2, [51.5]),
    ],
)
def test_figures_of_the_paper(name: str, row: str, encoder: str, fraction: float, figures: list[float]) -> None:
    experiment = find_experiment(name)
    assert experiment.printed(row, encoder, fraction) == figures
    assert experiment.printed(row, encoder, 0.3) is None
    assert experiment.printed("no such row", encoder, fraction) is None


@pytest.mark.parametrize("name", [name for name in experiments() if find_experiment(name).kind == "table"])
def test_the_paper_has_as_many_figures_as_scores(name: str) -> None:
    experiment = find_experiment(name)
    for row, encoder, fraction in itertools.product(experiment.rows, experiment.encoders, experiment.fractions):
        figures = experiment.printed(row, encoder, fraction)
        assert figures is None or len(figures) == len(experiment.scores)


def test_tables_share_their_runs() -> None:
    runs = {name: {run.name for run in matrix(name).runs} for name in ("table1", "table2", "table3", "figure5")}
    assert runs["table2"] == runs["table3"]  # boxes and masks are scores of one network
    pretrained = {name for name in runs["table1"] if name.startswith("pretrain")}
    assert {name for name in runs["table2"] if name.startswith("pretrain")} < pretrained
    assert "semantic-labelled-resnet18/scratch-seed0" in runs["table1"] & runs["figure5"]


def test_one_pretraining_a_seed_whatever_is_fine_tuned() -> None:
    found = matrix("figure5", seeds=(0, 1))
    assert sum(run.verb == "pretrain" for run in found.runs) == 2
    assert len(found.cells) == 2 * 5
    assert all(len(cell.runs) == 2 for cell in found.cells)
    parts = groups(found)
    assert sorted(run.name for runs in parts for run in runs) == sorted(run.name for run in found.runs)
    assert [runs[0].after for runs in parts] == [None] * len(parts)
    assert max(len(runs) for runs in parts) == 6  # a pre-training and five fractions of the labels


def test_rows_that_cannot_be_had_are_left_out() -> None:
    paper = matrix("table1", "scannet", "paper")
    assert [*paper.left_out] == ["MoCoV2-IN+SN (combine)", "MoCoV2-IN+SN (mixing batch)"]
    assert "--imagenet" in paper.left_out["MoCoV2-IN+SN (combine)"]
    assert not matrix("table1", "scannet", "paper", folders=("imagenet",)).left_out
    assert {cell.row for cell in matrix("table4").cells if cell.start == "scratch"} == {
        "Scratch, DeepLabV3",
        "Scratch, DeepLabV3+",
        "Scratch, PSPNet",
    }


def test_a_study_adds_rows_of_its_own() -> None:
    """From ImageNet, every row of the paper but those that mix its images in, and adapt with its own learning rate."""
    found = matrix("table1", "rooms", "imagenet")
    assert [cell.start for cell in found.cells] == [
        "scratch", "imagenet", "moco", "trivial", "depth", "view", "geo", "view+geo", "adapt",
    ]  # fmt: skip
    trained = {run.name: run.options for run in found.runs if run.verb == "pretrain"}
    assert {options["init"] for options in trained.values()} == {"imagenet"}
    rates = {name.partition("/")[2].removesuffix("-seed0"): options["lr"] for name, options in trained.items()}
    assert (rates["adapt"], rates["view+geo"]) == (0.0005, 0.001)
    assert "adapt" not in {cell.start for cell in matrix("table1").cells}


def test_an_experiment_without_any_row_is_refused() -> None:
    study = find_study("rooms", "small")
    starts = [str(row["start"]) for row in find_experiment("figure4").rows.values()]
    bare = study._replace(settings={**study.settings, "without": starts})
    with pytest.raises(ConfigError, match="none of its rows"):
        build_matrix(find_experiment("figure4"), bare, [0], [1.0])


@pytest.mark.parametrize(("on", "size"), STUDIES)
def test_notes_are_sentences_about_starts(on: str, size: str) -> None:
    notes = find_study(on, size).settings.get("notes", {})
    assert set(notes) <= set(stated("experiments")["starts"])
    assert all(note.endswith(".") for note in notes.values())


def test_unknown_names_list_the_choices() -> None:
    with pytest.raises(ConfigError, match="table1"):
        find_experiment("tabel1")
    with pytest.raises(ConfigError, match="rooms"):
        find_study("room", "small")
    with pytest.raises(ConfigError, match="paper"):
        find_study("rooms", "big")
