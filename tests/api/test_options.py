"""Options: what is converted, refused and known of them; twins read without PyTorch; those of other packages."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import pri3d
from pri3d import registry
from pri3d.api import plugins
from pri3d.api.options import VERBS, AnyPath, Options, fields_of, hints_of, option
from pri3d.api.pretrain import ContrastOptions, MatchingOptions, PretrainOptions, UNetOptions, resolve_pretraining
from pri3d.cli import main, parse
from pri3d.errors import ConfigError, WeightsError
from pri3d.exporting.hf import HubModel
from pri3d.networks.encoders import Encoder, build_encoder
from pri3d.objectives import Objective, Setup, Terms
from pri3d.tasks import load_task
from pri3d.testing import EncoderContract

FLOATS = st.floats(-100, 100)


class InnerOptions(Options):
    """A group."""

    group = "inner"

    share: float = option("a share", default=0.5, above=0, most=1)
    count: int = option("a count", default=3, least=1, below=10)


class OuterOptions(Options):
    """With a group in it."""

    place: AnyPath | None = option("a place", default=None)
    rate: float = option("a rate", default=1.0)
    kind: Literal["one", "two"] = option("a kind", default="one")
    names: Sequence[str] = option("names", default=())
    is_on: bool = option("a switch", default=False)
    inner: InnerOptions = option("the group", default=InnerOptions())


def test_values_are_converted_where_nothing_is_lost() -> None:
    made = OuterOptions(place="a/b", rate=2, names=("x",), inner={"share": 1})  # type: ignore[arg-type]
    assert made.place == Path("a/b")
    assert (made.rate, type(made.rate)) == (2.0, float)
    assert made.names == ["x"]
    assert made.inner == InnerOptions(share=1.0)
    assert (type(made.inner), type(made.inner.share)) == (InnerOptions, float)
    assert OuterOptions(place=Path("c")).place == Path("c")
    assert OuterOptions(place=None).place is None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rate": "1e-3"}, "--rate '1e-3': expected a number"),
        ({"rate": True}, "--rate True: expected a number"),
        ({"place": 3}, "--place 3"),
        ({"kind": "three"}, "--kind 'three': choose one of one, two"),
        ({"names": "x"}, "--names 'x': expected a list"),
        ({"is_on": 1}, "--is-on 1: expected true or false"),
        ({"inner": {"count": 1.0}}, "--inner.count 1.0: expected a whole number"),
        ({"inner": {"cont": 1}}, "unknown option --inner.cont, did you mean --inner.count?"),
        ({"inner": 3}, "--inner 3"),
        ({"is_of": True}, "unknown option --is-of, did you mean --is-on?"),
        ({"zebra": 1}, "unknown option --zebra."),
    ],
)
def test_what_loses_something_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        OuterOptions(**values)
    assert words in str(caught.value)


def test_everything_wrong_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        OuterOptions(rate="x", kinds="one", inner={"share": "y", "cont": 2})  # type: ignore[call-arg, arg-type]
    for part in ("--rate 'x'", "--kinds, did you mean --kind?", "--inner.share 'y'", "--inner.cont"):
        assert part in str(caught.value)
    assert len(OuterOptions(inner=InnerOptions(share=2.0, count=0)).problems()) == 2


@given(share=FLOATS | st.just(float("nan")), count=st.integers(-20, 20))
def test_bounds_of_every_kind(share: float, count: int) -> None:
    """Above and at most, at least and below; alone and within a group; what is no number is out of all bounds."""
    inner = InnerOptions(share=share, count=count)
    wanted = []
    if not share > 0:
        wanted.append(f"--inner.share {share}: give more than 0")
    if not share <= 1:
        wanted.append(f"--inner.share {share}: give at most 1")
    if not count >= 1:
        wanted.append(f"--inner.count {count}: give at least 1")
    if not count < 10:
        wanted.append(f"--inner.count {count}: give less than 10")
    assert inner.problems() == OuterOptions(inner=inner).problems()
    assert sorted(inner.problems()) == sorted(wanted)


@given(st.dictionaries(st.sampled_from(["rate", "is_on"]), st.just(1.0)), st.booleans(), st.booleans())
def test_what_was_given_is_known(values: dict[str, Any], grouped: bool, shared: bool) -> None:
    """Defaults that are given count; of a group only what was given in it, and nothing of an empty one."""
    values = {name: value if name == "rate" else False for name, value in values.items()}
    inner = {"share": 0.5} if shared else {}
    made = OuterOptions(**values, **({"inner": InnerOptions(**inner)} if grouped else {}))
    assert made.given() == values | ({"inner": inner} if grouped and shared else {})
    assert OuterOptions(**made.given()).given() == made.given()


def test_they_are_frozen_values() -> None:
    made = OuterOptions(rate=2.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.rate = 3.0  # type: ignore[misc]
    assert made == OuterOptions(rate=2) != OuterOptions(rate=3.0)
    assert OuterOptions() == OuterOptions(rate=1.0)  # given or not is no part of the value
    assert dataclasses.replace(made, kind="two").plain() == {**made.plain(), "kind": "two"}


def test_positional_values_are_those_of_the_verb() -> None:
    assert PretrainOptions("out/a").data == Path("out/a")
    with pytest.raises(TypeError, match="1 positional arguments at most, 2 were given"):
        PretrainOptions("out/a", 3)  # type: ignore[call-arg, misc]


def test_every_group_is_named_as_its_field() -> None:
    for verb in VERBS.values():
        for field in fields_of(verb.options):
            if isinstance(field.default, Options):
                assert field.default.group == field.name
    for kind, builtin in plugins.BUILTIN.items():
        for name in builtin:
            found = plugins.options_class(kind, name)
            assert found is None or found.group == name


def test_bounds_of_a_verb_are_checked_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--rooms 0: give at least 1; --frames -1: give at least 1"):
        pri3d.rooms(tmp_path / "out", rooms=0, frames=-1)
    assert not (tmp_path / "out").exists()


TWINS = """
import json, sys
from pri3d.api.options import fields_of, hints_of
from pri3d.api.plugins import BUILTIN, options_class
found = {}
for kind, builtin in BUILTIN.items():
    for name in builtin:
        options = options_class(kind, name)
        if options is not None:
            hints = hints_of(options)
            found[f"{kind}.{name}"] = [options.__name__, options.group, [
                [f.name, str(hints[f.name]), repr(f.default), f.metadata["about"], sorted(f.metadata["bounds"].items())]
                for f in fields_of(options)
            ]]
assert "torch" not in sys.modules
print(json.dumps(found))
"""


def test_options_are_known_without_pytorch_and_as_they_are() -> None:
    """Same fields, defaults, types, help and bounds as the classes themselves."""
    output = subprocess.run([sys.executable, "-c", TWINS], check=True, capture_output=True, text=True).stdout
    found = json.loads(output)
    wanted = {}
    for kind, builtin in plugins.BUILTIN.items():
        for name in builtin:
            options = getattr(registry.load(kind, builtin, name), "options", None)
            if options is not None:
                hints = hints_of(options)
                fields = [
                    [
                        field.name,
                        str(hints[field.name]),
                        repr(field.default),
                        field.metadata["about"],
                        [list(bound) for bound in sorted(field.metadata["bounds"].items())],
                    ]
                    for field in fields_of(options)
                ]
                wanted[f"{kind}.{name}"] = [options.__name__, options.group, fields]
    assert found == wanted
    assert {"objectives.geometry", "objectives.moco", "tasks.semantic", "tasks.instance"} <= set(found)


class MineOptions(Options):
    """An objective of another package."""

    group = "mine"

    alpha: float = option("a factor", default=1.0, above=0)


class MineObjective(Objective):
    """Pulls the features to zero."""

    options = MineOptions
    seen: list[float] = []

    def __init__(self, setup: Setup, options: MineOptions = MineOptions()) -> None:  # noqa: B008 (frozen)
        super().__init__(setup)
        self.alpha = options.alpha
        self.seen.append(options.alpha)

    def forward(self, features: Any, batch: Any) -> Terms:
        return Terms(self.alpha * features.dense.square().mean(), {})


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The objective above as an installed package's; what reached its constructor."""
    entry = EntryPoint("mine", f"{__name__}:MineObjective", "pri3d.objectives")
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry] if group == entry.group else [])
    monkeypatch.setattr(MineObjective, "seen", [])
    plugins.options_class.cache_clear()
    yield MineObjective.seen  # type: ignore[misc]
    plugins.options_class.cache_clear()


SMALL: dict[str, Any] = {
    "size": "64x48", "batch": 4, "micro_batch": 2, "holdout": 0.0, "encoder": "test_resnet", "workers": 0,
}  # fmt: skip
GROUPS: dict[str, Any] = {"contrast": ContrastOptions(points=64), "matching": MatchingOptions(distance=0.1)}


def test_options_of_another_package_reach_it(rooms_store: Path, tmp_path: Path, mine: list[float]) -> None:
    weights = {"mine": 1.0, "view": 1.0}
    run = pri3d.pretrain(
        rooms_store, run=tmp_path / "a", steps=1, objectives=weights, options=[MineOptions(alpha=3)], **SMALL, **GROUPS
    )
    assert mine == [3.0]
    assert "mine/loss" in run.metrics[0]
    with pytest.raises(ConfigError, match=r"--mine\.alpha 0\.0: give more than 0"):
        pri3d.pretrain(rooms_store, run=tmp_path / "b", objectives=weights, options=[MineOptions(alpha=0)], **SMALL)
    with pytest.raises(ConfigError, match=r"--mine\.alpha: not used by the objectives view"):
        pri3d.pretrain(rooms_store, run=tmp_path / "b", objectives={"view": 1}, options=[MineOptions(alpha=2)], **SMALL)
    assert not (tmp_path / "b").exists()


def test_options_of_another_package_are_flags(
    rooms_store: Path, tmp_path: Path, mine: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    words += ["--objectives={mine: 1}", "--steps=1", f"--run={tmp_path / 'run'}"]
    assert main(["pretrain", str(rooms_store), *words, "--mine.alpha", "2"]) == 0
    assert mine == [2.0]
    with pytest.raises(SystemExit):
        main(["pretrain", str(rooms_store), *words, "--mine.alhpa", "2"])
    assert "Did you mean --mine.alpha" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["pretrain", "--help"])
    assert "--mine.alpha" in capsys.readouterr().out


class ConvOptions(Options):
    """One convolution."""

    group = "oneconv"

    width: int = option("channels of the map", default=4, least=1, most=64)


class ConvEncoder(Encoder):
    """An encoder of another package."""

    options = ConvOptions
    strides = (4, 8)

    def __init__(self, name: str, pretrained: bool = False, options: ConvOptions = ConvOptions()) -> None:  # noqa: B008
        super().__init__()
        self.name, self.channels = name, (options.width, 3)
        self.stages = nn.ModuleList([nn.Conv2d(3, options.width, 4, 4), nn.Conv2d(options.width, 3, 2, 2)])

    def forward(self, images: Tensor) -> list[Tensor]:
        height, width = images.shape[-2:]
        whole = nn.functional.pad(images, (0, -width % 8, 0, -height % 8))
        maps = []
        for stage in self.stages:
            whole = stage(whole)
            maps.append(whole)
        return [x[..., : -(-height // s), : -(-width // s)] for x, s in zip(maps, self.strides, strict=True)]


@pytest.fixture
def oneconv(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The encoder above as an installed package's."""
    entry = EntryPoint("oneconv", f"{__name__}:ConvEncoder", "pri3d.encoders")
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry] if group == entry.group else [])
    plugins.options_class.cache_clear()
    yield
    plugins.options_class.cache_clear()


SLIM = SMALL | {"encoder": "oneconv", "steps": 1, "weights": "scratch", "unet": UNetOptions(decoder="slim", channels=8)}


@pytest.mark.usefixtures("oneconv")
def test_options_of_an_encoder_reach_every_network(rooms_store: Path, tmp_path: Path) -> None:
    """From the call to its run, and from its weights to every network that is built of them."""
    own = [ConvOptions(width=6)]
    run = pri3d.pretrain(rooms_store, run=tmp_path / "run", options=own, **SLIM, **GROUPS)
    assert yaml.safe_load((run.path / "config.yaml").read_text())["settings"]["oneconv"] == {"width": 6}
    trained = pri3d.load(run)
    assert trained.channels == (6, 3)
    assert trained.encoder.built_with == {"width": 6}
    images = torch.rand(1, 3, 48, 64)
    for form in ("safetensors", "hf"):
        again = pri3d.load(pri3d.export(run, to=form, out=tmp_path / f"net{'.safetensors' if form != 'hf' else ''}"))
        assert torch.equal(again(images)[-1], trained(images)[-1])
    assert pri3d.load(run, part="all")(images).shape == (1, 8, 24, 32)
    assert HubModel.from_pretrained(tmp_path / "net").net.encoder.built_with == {"width": 6}

    more = SLIM | {"weights": str(run.path)}
    with pytest.raises(WeightsError, match=r"built with \{'width': 6\}: pass --oneconv\.width 6"):
        pri3d.pretrain(rooms_store, run=tmp_path / "more", **more, **GROUPS)
    more = {"steps": 2, "batch": 2, "micro_batch": 2, "workers": 0, "val": rooms_store, "weights": run}
    tuned = pri3d.finetune("semantic", rooms_store, run=tmp_path / "tuned", **more)
    stated = yaml.safe_load((tuned.path / "config.yaml").read_text())["settings"]
    assert (stated["encoder"], stated["oneconv"]) == ("oneconv", {"width": 6})
    assert load_task(tuned.path).model.encoder.built_with == {"width": 6}
    assert pri3d.load(tuned).channels == (6, 3)
    with pytest.raises(ConfigError, match=r"--oneconv\.width 5: the weights belong to a network with 6"):
        pri3d.finetune("semantic", rooms_store, run=tmp_path / "other", options=[ConvOptions(width=5)], **more)
    with pytest.raises(ConfigError, match=r"made with other settings: oneconv\.width was 6, now 7"):
        pri3d.pretrain(rooms_store, run=run.path, resume=True, options=[ConvOptions(width=7)], **SLIM, **GROUPS)


@pytest.mark.usefixtures("oneconv")
def test_options_of_an_encoder_that_is_not_chosen_are_refused(rooms_store: Path, tmp_path: Path) -> None:
    own, run = [ConvOptions(width=6)], tmp_path / "run"
    for encoder in ("resnet18", "test_resnet"):
        with pytest.raises(ConfigError, match=rf"--oneconv\.width: not used by the encoder {encoder}"):
            pri3d.pretrain(rooms_store, run=run, options=own, **SLIM | {"encoder": encoder})
    with pytest.raises(ConfigError, match=r"--oneconv\.width: not used by the encoder resnet18"):
        pri3d.finetune("semantic", rooms_store, val=rooms_store, run=run, encoder="resnet18", options=own)
    with pytest.raises(ConfigError, match=r"--oneconv\.width 65: give at most 64"):
        pri3d.pretrain(rooms_store, run=run, options=[ConvOptions(width=65)], **SLIM)
    with pytest.raises(ConfigError, match=r"unknown option --oneconv\.depth"):
        build_encoder("oneconv", options={"depth": 3})
    with pytest.raises(ConfigError, match=r"--oneconv\.width '6': expected a whole number"):
        build_encoder("oneconv", options={"width": "6"})
    with pytest.raises(ConfigError, match="encoder resnet18 has no options"):
        build_encoder("resnet18", options={"width": 6})
    assert not run.exists()
    assert resolve_pretraining("quick", {"encoder": "oneconv"}).own["oneconv"] == ConvOptions()
    preset = tmp_path / "mine.yaml"
    preset.write_text("base: quick\nencoder: oneconv\noneconv: {width: 9}\n")
    assert resolve_pretraining(str(preset)).of_encoder == ConvOptions(width=9)
    assert resolve_pretraining(str(preset), {"encoder": "resnet18"}).of_encoder is None  # the preset's are left out


@pytest.mark.usefixtures("oneconv")
def test_options_of_an_encoder_are_flags(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["pretrain"], ["finetune"]):
        with pytest.raises(SystemExit):
            main([*words, "--help"])
        shown = capsys.readouterr().out
        assert "oneconv: One convolution:" in shown and "--oneconv.width N" in shown
    words = parse(VERBS["pretrain"], ["out", "--encoder", "oneconv", "--oneconv.width", "6"])
    assert words["options"] == [ConvOptions(width=6)]
    words = parse(VERBS["finetune"], ["semantic", "out", "--oneconv.width", "6", "--semantic.channels", "8"])
    assert [each.given() for each in words["options"]] == [{"width": 6}, {"channels": 8}]
    with pytest.raises(SystemExit):
        parse(VERBS["pretrain"], ["out", "--oneconv.wdith", "6"])
    assert "Did you mean --oneconv.width" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse(VERBS["pretrain"], ["out", "--oneconv.width", "wide"])
    assert "--oneconv.width wide: expected a whole number" in capsys.readouterr().err


@pytest.mark.usefixtures("oneconv")
class TestConvEncoder(EncoderContract):
    name = "oneconv"
    options = {"width": 5}

    @pytest.fixture
    def encoder(self) -> Encoder:
        torch.manual_seed(0)
        return build_encoder(self.name, options=self.options).eval()
