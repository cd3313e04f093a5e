"""Features of images in each format: equal to the network alone, in order; what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tiny_backbone import FLAGS, alone, arrays, listed, near, photos, source, tiny, unet, weights
from torch import nn

from pri3d.api.embed import embed
from pri3d.cli import main
from pri3d.errors import ConfigError, DataError, WeightsError
from pri3d.evaluation import embed as embedding
from pri3d.evaluation.arrays import Table, write_features
from pri3d.evaluation.embed import Backbone
from pri3d.geometry.resize import resize_color
from pri3d.labelled._shared.decoding import read_rgb
from pri3d.networks.unet import build_unet
from pri3d.networks.weights import save_model, save_state

__all__ = ["source", "tiny", "unet", "weights"]  # fixtures


class TestValues:
    @pytest.mark.parametrize("level", [-1, 1, "features"])
    def test_pooled_is_the_mean_over_the_cells(self, weights, unet, source, tmp_path, level) -> None:
        found = arrays(embed(str(weights), source, tmp_path / "a.npz", level=level, **FLAGS))
        expected = {name: alone(unet, read_rgb(path), level) for name, path in listed(source).items()}
        assert found["names"].tolist() == list(expected)
        assert found["features"].dtype == np.float32
        near(found["features"], np.stack([one.mean((0, 1)) for one in expected.values()]))
        assert list(zip(found["height"], found["width"], strict=True)) == [e.shape[:2] for e in expected.values()]
        assert int(found["stride"]) == {-1: 8, 1: 4, "features": 2}[level]

    @pytest.mark.parametrize("level", [0, "features"])
    def test_dense_is_the_map(self, weights, unet, source, tmp_path, level) -> None:
        found = arrays(embed(str(weights), source, tmp_path / "a.npz", dense=True, level=level, **FLAGS))
        for name, path in listed(source).items():
            near(found[f"maps/{name}"], alone(unet, read_rgb(path), level))
        assert sum(name.startswith("maps/") for name in found) == 7

    def test_resized(self, weights, unet, source, tmp_path) -> None:
        found = np.load(embed(str(weights), source, tmp_path / "a.npy", size="48x32", dense=True, level=2, **FLAGS))
        assert found.shape == (7, 4, 6, 10)
        for one, path in zip(found, listed(source).values(), strict=True):
            near(one, alone(unet, resize_color(read_rgb(path), (48, 32)), 2))

    def test_length_one_and_half(self, weights, unet, source, tmp_path) -> None:
        out = embed(str(weights), source, tmp_path / "a.npz", normalise=True, half=True, **FLAGS)
        found = arrays(out)["features"]
        assert found.dtype == np.float16
        first = alone(unet, read_rgb(next(iter(listed(source).values())))).mean((0, 1))
        np.testing.assert_allclose(found[0], first / np.linalg.norm(first), atol=1e-3)
        out = embed(str(weights), source, tmp_path / "b.npz", dense=True, level=1, normalise=True, **FLAGS)
        lengths = np.linalg.norm(arrays(out)["maps/sub/2"], axis=-1)
        assert lengths.shape == (12, 16)
        near(lengths, np.ones((12, 16)))

    def test_bf16_is_near_and_stored_as_float32(self, weights, source, tmp_path) -> None:
        exact = np.load(embed(str(weights), source, tmp_path / "a.npy", **FLAGS))
        found = np.load(embed(str(weights), source, tmp_path / "b.npy", **{**FLAGS, "precision": "bf16"}))
        assert found.dtype == np.float32
        assert 0 < np.abs(found - exact).max() < 0.05 * np.abs(exact).max()

    def test_batches_are_of_one_size_and_bounded(self, weights, source, tmp_path, monkeypatch) -> None:
        shapes: list[tuple[int, ...]] = []
        maps = Backbone.maps

        def watched(self: Backbone, images: NDArray[np.uint8]) -> torch.Tensor:
            shapes.append(images.shape)
            return maps(self, images)

        monkeypatch.setattr(Backbone, "maps", watched)
        embed(str(weights), source, tmp_path / "a.npz", **{**FLAGS, "batch": 3})
        assert sorted(shape[0] for shape in shapes) == [1, 1, 2, 3]
        shapes.clear()
        monkeypatch.setattr(embedding, "PIXELS", 64 * 48 * 2)
        embed(str(weights), source, tmp_path / "b.npz", **{**FLAGS, "batch": 3})
        assert max(shape[0] for shape in shapes) == 2

    def test_a_video(self, weights, unet, tmp_path) -> None:
        frames = [Image.fromarray(np.full((48, 64), 30 * k, np.uint8)).convert("RGB") for k in range(5)]
        frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], duration=40, lossless=True)
        found = arrays(embed(str(weights), tmp_path / "a.webp", tmp_path / "a.npz", frame_step=2, **FLAGS))
        assert found["names"].tolist() == [f"a-{k:06d}" for k in (0, 2, 4)]
        near(found["features"][2], alone(unet, np.full((48, 64, 3), 120, np.uint8)).mean((0, 1)))


class TestNetworks:
    @pytest.mark.thorough
    def test_a_vision_transformer(self, source, tmp_path) -> None:
        """A network of timm, of one stride, fine-tuned or not; its encoder alone gives the same features."""
        unet = build_unet("vit_tiny_patch16_224", "slim", 8).eval()
        save_model(unet, tmp_path / "run" / "weights.safetensors", {})
        encoder = tmp_path / "encoder.safetensors"
        save_state(unet.encoder.state_dict(), encoder, {"encoder": unet.encoder.name, "part": "encoder"})
        first, second = (
            arrays(embed(str(model), source / "0.png", tmp_path / f"{k}.npz", **FLAGS))
            for k, model in enumerate((tmp_path / "run", encoder))
        )
        assert int(first["stride"]) == 16
        assert first["model"] == second["model"]
        assert np.array_equal(first["features"], second["features"])
        near(first["features"][0], alone(unet, read_rgb(source / "0.png")).mean((0, 1)))
        with pytest.raises(WeightsError, match="encoder"):
            embed(str(encoder), source, tmp_path / "2.npz", level="features")

    def test_none(self, source, tmp_path) -> None:
        with pytest.raises(WeightsError, match="none"):
            embed(str(tmp_path / "none"), source, tmp_path / "a.npz")
        assert not (tmp_path / "a.npz.parts").exists()


class TestFormats:
    def test_npy_and_what_lies_beside_it(self, weights, source, tmp_path) -> None:
        pooled = arrays(embed(str(weights), source, tmp_path / "a.npz", **FLAGS))
        out = embed(str(weights), source, tmp_path / "new" / "a.npy", **FLAGS)
        assert np.array_equal(np.load(out, mmap_mode="r"), pooled["features"])
        beside = json.loads((tmp_path / "new" / "a.npy.json").read_text())
        assert beside["names"] == pooled["names"].tolist()
        assert beside["height"] == pooled["height"].tolist()
        assert beside["stride"] == 8
        assert beside["weights"] == str(pooled["model"])
        assert sorted(path.name for path in out.parent.iterdir()) == ["a.npy", "a.npy.json"]

    @pytest.mark.parametrize("half", [False, True])
    def test_parquet(self, weights, source, tmp_path, half, monkeypatch) -> None:
        parquet = pytest.importorskip("pyarrow.parquet")
        monkeypatch.setattr("pri3d.evaluation.arrays._GROUP", 60)  # several row groups
        dtype = np.float16 if half else np.float32
        pooled = arrays(embed(str(weights), source, tmp_path / "a.npz", half=half, **FLAGS))
        table = parquet.read_table(embed(str(weights), source, tmp_path / "a.parquet", half=half, **FLAGS))
        assert table.column_names == ["name", "features", "height", "width", "stride"]
        assert table["name"].to_pylist() == pooled["names"].tolist()
        assert table.schema.field("features").type.list_size == 10
        assert np.array_equal(np.array(table["features"].to_pylist(), dtype), pooled["features"])
        dense = arrays(embed(str(weights), source, tmp_path / "b.npz", dense=True, half=half, **FLAGS))
        out = embed(str(weights), source, tmp_path / "b.parquet", dense=True, half=half, **FLAGS)
        assert parquet.ParquetFile(out).num_row_groups > 1
        for row in parquet.read_table(out).to_pylist():
            found = np.array(row["features"], dtype).reshape(row["height"], row["width"], -1)
            assert np.array_equal(found, dense[f"maps/{row['name']}"])
            assert row["stride"] == 8

    def test_parquet_without_pyarrow(self, weights, source, tmp_path, monkeypatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
        with pytest.raises(ConfigError, match=r"pri3d\[parquet\]"):
            embed(str(weights), source, tmp_path / "a.parquet")

    def test_one_array_holds_maps_of_one_size(self, weights, source, tmp_path, monkeypatch) -> None:
        monkeypatch.setattr(embedding, "BATCHES", 1)
        for _ in range(2):  # the second time, the first part is there
            with pytest.raises(DataError, match=r"1: its map has 32 x 24 cells, those before 24 x 32; .*--size"):
                embed(str(weights), source, tmp_path / "a.npy", dense=True, level=0, **{**FLAGS, "batch": 1})
        row = np.zeros((1, 1, 1), np.float32)
        table = Table(["a", "b"], np.array([[1, 1], [1, 2]]), 1, True, "float32", {}, lambda: iter([row, row]))
        with pytest.raises(DataError, match="several sizes"):
            write_features(tmp_path / "b.npy", table)
        assert not (tmp_path / "b.npy").exists()

    @pytest.mark.parametrize("name", ["a.csv", "a", "a.NPZ.gz"])
    def test_other_suffixes(self, weights, source, tmp_path, name) -> None:
        with pytest.raises(ConfigError, match=r"\.npz, \.npy, \.parquet"):
            embed(str(weights), source, tmp_path / name)


class TestMistakes:
    def test_a_broken_image_costs_only_itself(self, weights, unet, source, tmp_path, capsys) -> None:
        cut = source / "1.png"
        cut.write_bytes(cut.read_bytes()[:60])
        words = ["embed", str(weights), str(source), "--out", str(tmp_path / "a.npz"), "--precision", "fp32"]
        for _ in range(2):  # the second time from the file
            assert main(words) == 1
            text = capsys.readouterr().err
            assert "1 of 7 failed" in text
            assert "1.png" in text
        found = arrays(tmp_path / "a.npz")
        assert found["names"].tolist() == ["0", "3", "4", "6", "sub/2", "sub/5"]
        near(found["features"][1], alone(unet, read_rgb(source / "3.png")).mean((0, 1)))
        photos(source, ["1.png"], [(20, 20)])
        assert main([*words, "--overwrite"]) == 0
        assert len(arrays(tmp_path / "a.npz")["names"]) == 7

    def test_no_image_at_all_can_be_read(self, weights, tmp_path) -> None:
        (tmp_path / "a.png").write_bytes(b"x")
        with pytest.raises(DataError, match=r"no image could be read:\n.*a\.png"):
            embed(str(weights), tmp_path / "a.png", tmp_path / "a.npz")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "run"]

    def test_names_are_unique(self, weights, tmp_path) -> None:
        names = ["a.jpg", "a.png", "b/a.png", "b/c/a.png", "b.png", ".a.png"]
        photos(tmp_path / "in", names, [(32, 32)] * 6)
        found = arrays(embed(str(weights), tmp_path / "in", tmp_path / "a.npz", dense=True))
        assert found["names"].tolist() == ["a.jpg", "a.png", "b/a", "b/c/a", "b"]
        assert {f"maps/{name}" for name in found["names"]} <= set(found)

    @pytest.mark.parametrize("level", [3, -4])
    def test_levels_are_listed(self, weights, source, tmp_path, level) -> None:
        expected = rf"--level {level}.*0 \(stride 2, 4 channels\).*2 \(stride 8, 10 channels\)"
        with pytest.raises(ConfigError, match=expected):
            embed(str(weights), source, tmp_path / "a.npz", level=level)

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            ({"dense": True, "pooled": True}, "--pooled and --dense"),
            ({"batch": 0}, "--batch 0"),
            ({"workers": 0}, "--workers 0"),
            ({"size": "big"}, "--size big"),
            ({"frame_step": 0}, "--frame-step 0"),
            ({"precision": "fp8"}, "auto, fp32, bf16"),
        ],
    )
    def test_flags(self, weights, source, tmp_path, flags, message) -> None:
        with pytest.raises(ConfigError, match=message):
            embed(str(weights), source, tmp_path / "a.npz", **flags)

    def test_places_that_cannot_be_written(self, weights, source, tmp_path, monkeypatch) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(ConfigError, match=r"a\.npz: cannot be written"):
            embed(str(weights), source, tmp_path / "file" / "a.npz")

        def deny(*_: Any, **__: Any) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "mkdir", deny)
        with pytest.raises(ConfigError, match=r"cannot be written .*Permission denied"):
            embed(str(weights), source, tmp_path / "a.npz")

    def test_a_folder_is_no_file(self, weights, source, tmp_path) -> None:
        (tmp_path / "a.npz").mkdir()
        with pytest.raises(ConfigError, match="is a folder"):
            embed(str(weights), source, tmp_path / "a.npz", overwrite=True)

    def test_values_that_are_no_numbers(self, source, tmp_path) -> None:
        unet = build_unet("tiny", "slim", 8)
        for value, half, message in ((1e38, False, r"are not finite\."), (1e5, True, r"are not .*--half")):
            for layer in unet.encoder.layers:
                nn.init.constant_(layer.weight, value if layer is unet.encoder.layers[0] else 1)
            save_model(unet, tmp_path / "w.safetensors", {})
            with pytest.raises(WeightsError, match=message):
                embed(str(tmp_path / "w.safetensors"), source, tmp_path / "a.npz", half=half, overwrite=True, **FLAGS)
        assert not (tmp_path / "a.npz").exists()


def test_switches(weights, source, tmp_path) -> None:
    words = ["embed", str(weights), str(source), "--size", "32x32"]
    assert main([*words, "--dense", "--out", str(tmp_path / "d.npy"), "--level", "features"]) == 0
    assert np.load(tmp_path / "d.npy").shape == (7, 16, 16, 8)
    assert main([*words, "--pooled", "--out", str(tmp_path / "p.npy"), "--level", "-2"]) == 0
    assert np.load(tmp_path / "p.npy").shape == (7, 6)
    assert main([*words, "--pooled", "--dense", "--out", str(tmp_path / "x.npy")]) == 1
