"""The contract of export formats.

A new one inherits all checks in three lines:

    class TestMine(ExportFormatContract):
        name = "mine"
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pri3d import registry
from pri3d.errors import ConfigError, WeightsError
from pri3d.exporting import FORMATS
from pri3d.exporting.base import ExportFormat, maps_of
from pri3d.exporting.export import export
from pri3d.networks.load import load
from pri3d.networks.unet import build_unet
from pri3d.networks.weights import save_model


class ExportFormatContract:
    """Checks of one format; ``name`` is what it is registered as."""

    name: ClassVar[str]
    encoder: ClassVar[str] = "resnet18"  #: one that it holds
    refused: ClassVar[tuple[str, ...]] = ()  #: encoders that it cannot hold
    needs: ClassVar[tuple[str, ...]] = ()  #: packages without which it is skipped
    snippet_needs: ClassVar[tuple[str, ...]] = ()  #: packages without which the printed lines are not run
    named: ClassVar[bool] = True  #: whether the consumer finds tensors by their names, not so of a recorded graph

    @pytest.fixture(scope="class")
    def run(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A run whose batch norms are away from their start."""
        for package in self.needs:
            pytest.importorskip(package)
        folder = tmp_path_factory.mktemp("run")
        torch.manual_seed(0)
        unet = build_unet(self.encoder, "slim", 8)
        unet(torch.rand(2, 3, 64, 64))
        save_model(
            unet, folder / "weights.safetensors", {"preset": "view", "init": "scratch", "data": "/at/home/rooms"}
        )
        return folder

    @pytest.fixture(scope="class")
    def exported(self, run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
        """The file or folder, and what was printed."""
        out = tmp_path_factory.mktemp("out") / self._kind().file.format(part="encoder")
        printed = io.StringIO()
        with redirect_stdout(printed):
            assert export(run, self.name, out) == out
        return out, printed.getvalue()

    def test_its_name_is_known(self) -> None:
        """By the registry, as a subclass of the base class."""
        assert self.name in registry.names("exports", FORMATS)
        assert issubclass(self._kind(), ExportFormat)

    def test_the_file_lies_where_it_was_asked_for(self, exported: tuple[Path, str]) -> None:
        """And the folder holds what explains it, no leftovers."""
        out, _ = exported
        assert out.is_dir() == bool(self._kind().inside)
        assert (out / self._kind().inside).exists()
        assert [path for path in out.parent.iterdir() if path.name.startswith(".")] == []

    def test_the_card(self, exported: tuple[Path, str]) -> None:
        """It has a head that the hub reads, the lines that load the file, who checked it and how near it came."""
        out, printed = exported
        card = out / "README.md" if self._kind().inside else out.with_name(f"{out.name}.md")
        _, head, text = card.read_text(encoding="utf-8").split("---\n", 2)
        front = yaml.safe_load(head)
        assert {"pri3d", self.encoder, self.name} <= set(front["tags"])
        assert front["library_name"]
        assert text.count("```python") == 1
        assert "largest\nabsolute difference" in text
        reader = text.split("read again by ", 1)[1].split(" and compared with", 1)[0]
        assert f"checked by {reader}, largest difference" in printed
        if self._kind().published:
            names = [path.read_text() for path in out.iterdir() if path.suffix in (".json", ".md")]
            assert not any("/at/home" in name or str(out.parent) in name for name in names)

    def test_the_printed_lines_work_from_any_folder(
        self, exported: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """They name the file by its whole path and leave the network in ``net``."""
        out, printed = exported
        snippet = printed.split("\n\n", 1)[1]
        compile(snippet, "snippet", "exec")
        assert str(out.with_suffix("").absolute()) in snippet
        for package in self.snippet_needs:
            pytest.importorskip(package)
        monkeypatch.chdir(tmp_path)
        names: dict[str, Any] = {}
        exec(snippet, names)
        assert names["net"] is not None

    def test_features_that_differ_are_refused(self, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Weights that were changed on their way leave nothing behind."""
        kind, out = self._kind(), tmp_path / self._kind().file.format(part="encoder")
        write = kind.write

        def bent(self: ExportFormat, source: Any, path: Path) -> None:
            for value in source.encoder.parameters():
                value.data += 0.1
            write(self, source, path)

        monkeypatch.setattr(kind, "write", bent)
        with pytest.raises(WeightsError, match="differ"):
            export(run, self.name, out)
        assert list(tmp_path.iterdir()) == []

    def test_names_that_the_consumer_does_not_know_are_seen(self, run: Path, tmp_path: Path) -> None:
        """A file whose tensors have other names is refused or gives other features, never the run's."""
        if not self.named:
            pytest.skip("a recorded graph has no names that a consumer looks up")
        source = load(run, "encoder")
        source.record["part"] = "encoder"
        form = self._kind()(source, self.name)
        path = tmp_path / (form.inside or form.file.format(part="encoder"))
        number, height, width = form.probes()[0]
        images = torch.rand(number, 3, height, width)
        with torch.no_grad():
            expected = maps_of(source(images))[-1]
            form.write(source, path)
            for name, text in form.companions(path).items():
                path.with_name(name).write_text(text, encoding="utf-8")
            torch.testing.assert_close(form.features(path, images)[-1], expected, atol=form.bound * 100, rtol=1e-3)
            rename_tensors(path)
            try:
                difference = float((form.features(path, images)[-1] - expected).abs().max())
            except (WeightsError, RuntimeError, KeyError, ValueError):
                return
        assert math.isnan(difference) or difference > 1e-2 * float(expected.abs().max())

    def test_an_export_is_replaced_and_nothing_else(self, run: Path, tmp_path: Path) -> None:
        """A file of that name that is no export is kept."""
        out = tmp_path / self._kind().file.format(part="encoder")
        mine = out / self._kind().inside if self._kind().inside else out
        mine.parent.mkdir(exist_ok=True)
        mine.write_text("mine")
        with pytest.raises(ConfigError, match="would be replaced"):
            export(run, self.name, out)
        assert mine.read_text() == "mine"
        mine.unlink()
        export(run, self.name, out)
        export(run, self.name, out)

    def test_what_it_cannot_hold(self, tmp_path: Path) -> None:
        """An encoder that it cannot hold is refused with the formats that can."""
        for name in self.refused:
            save_model(build_unet(name, "slim", 8), tmp_path / "run" / "weights.safetensors", {})
            with pytest.raises(ConfigError, match=rf"{name.partition('.')[0]}.*--to"):
                export(tmp_path / "run", self.name, tmp_path / self._kind().file.format(part="encoder"))
            assert [path.name for path in tmp_path.iterdir()] == ["run"]

    def _kind(self) -> Any:
        """Class of the format."""
        return registry.load("exports", FORMATS, self.name)


def rename_tensors(path: Path) -> None:
    """Give every tensor of a safetensors or torch file another name, in place."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            state = {f"other.{key}": file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 (no dict)
            header = file.metadata()
        save_file(state, path, metadata=header)
        return
    torch.save(_renamed(torch.load(path, weights_only=True)), path)


def _renamed(content: Mapping[str, Any]) -> dict[str, Any]:
    """A dictionary with another name for every tensor, at any depth."""
    return {
        f"other_{key}" if isinstance(value, Tensor) else key: _renamed(value) if isinstance(value, Mapping) else value
        for key, value in content.items()
    }
