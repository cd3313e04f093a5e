from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import pri3d
from pri3d.errors import ConfigError, WeightsError
from pri3d.networks.encoders import build_encoder
from pri3d.networks.load import WeightsSource
from pri3d.networks.state_files import read_state
from pri3d.networks.unet import build_unet
from pri3d.networks.weights import load_model, load_weights, mix_states, read_provenance, save_model, save_state


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return torchvision.models.resnet18().state_dict()


@pytest.fixture
def encoder():
    return build_encoder("resnet18")


def equal(encoder, state):
    return all(torch.equal(v, state[k]) for k, v in encoder.state_dict().items())


class Hostile:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


def test_a_model_comes_back_as_it_was(tmp_path):
    unet = build_unet("resnet18", "slim", channels=7).eval()
    save_model(unet, tmp_path / "weights.safetensors", {"preset": "view", "steps": 12, "init": "scratch"})
    again, record = load_model(tmp_path)
    assert record["steps"] == 12
    assert (record["encoder"], record["decoder"], record["channels"]) == ("resnet18", "slim", 7)
    assert "version" in record
    images = torch.rand(1, 3, 32, 48)
    assert torch.equal(unet(images), again(images))
    assert [p.name for p in tmp_path.iterdir()] == ["weights.safetensors"]
    with safe_open(tmp_path / "weights.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["pri3d"]) == record
        assert all(k.startswith(("encoder.", "decoder.")) for k in file.keys())  # noqa: SIM118


@pytest.mark.parametrize(
    ("wrap", "nest"),
    [
        ("{}", None),
        ("module.{}", "state_dict"),
        ("backbone.encoder.{}", "model"),
        ("module.encoder_q.{}", "state_dict"),
        ("_forward_module.model.{}", "state_dict"),
    ],
)
def test_wrapped_and_nested_checkpoints_load(tmp_path, resnet, encoder, wrap, nest):
    state = {wrap.format(k): v for k, v in resnet.items() if "num_batches" not in k}
    torch.save({nest: state, "epoch": 3} if nest else state, tmp_path / "x.pth")
    report = load_weights(encoder, tmp_path / "x.pth")
    assert report.coverage == 1
    assert not report.missing
    assert not report.unexpected
    assert equal(encoder, resnet | {k: v for k, v in encoder.state_dict().items() if "num_batches" in k})


def test_moco_takes_the_query_encoder(resnet, encoder):
    state = {f"module.encoder_q.{k}": v for k, v in resnet.items()}
    state |= {f"module.encoder_k.{k}": v + 1 for k, v in resnet.items()} | {"module.queue": torch.zeros(4)}
    report = load_weights(encoder, state)
    assert equal(encoder, resnet)
    assert any("encoder_k" in k for k in report.unexpected)
    load_weights(encoder, state, prefix="module.encoder_k.")
    assert equal(encoder, {k: v + 1 for k, v in resnet.items()})


def _layouts(net, other):
    """Files as the self-supervised methods write them: name -> content; ``other`` is a set of weights to leave alone.

    MoCo and SwAV: the authors' releases; SimCLR: the three ports in use; DINO: its training file and the backbone.
    """
    head = {"0.weight": torch.ones(8, 8), "0.bias": torch.ones(8), "2.weight": torch.ones(4, 8)}

    def under(prefix, state):
        return {prefix + k: v for k, v in state.items()}

    moco = under("module.encoder_q.", net) | under("module.encoder_k.", other)
    moco |= under("module.encoder_q.fc.", head) | {"module.queue": torch.ones(4, 8), "module.queue_ptr": torch.ones(1)}
    mocov3 = under("module.base_encoder.", net) | under("module.momentum_encoder.", other)
    dino = under("backbone.", net) | under("head.mlp.", head)
    return {
        "moco": {"epoch": 200, "arch": "resnet18", "state_dict": moco},
        "moco v3": {"state_dict": mocov3 | under("module.predictor.", head)},
        "swav": under("module.", net)
        | under("module.projection_head.", head)
        | {"module.prototypes.weight": head["2.weight"]},
        "simclr convnet": {"state_dict": under("convnet.", net) | under("projection.", head)},
        "simclr encoder": under("encoder.", net) | under("projector.", head),
        "simclr backbone": {"state_dict": under("backbone.", net) | under("backbone.fc.", head)},
        "dino": {
            "teacher": {k.removeprefix("module."): v for k, v in dino.items()},
            "student": under("module.", other),
        },
        "dino backbone": dict(net),
    }


@pytest.mark.parametrize("layout", _layouts({}, {}))
def test_self_supervised_checkpoints_start_an_encoder(tmp_path, resnet, encoder, layout):
    net = {k: v for k, v in resnet.items() if not k.startswith("fc.")}
    other = {k: torch.zeros((), dtype=v.dtype).expand(v.shape) for k, v in net.items()}  # one number each on disk
    content = _layouts(net, other)[layout]
    torch.save(content, tmp_path / "x.pth.tar")
    report = WeightsSource(str(tmp_path / "x.pth.tar"), on_hub=False).fill(encoder)
    assert report.coverage == 1
    assert not report.missing
    assert equal(encoder, net)


def test_a_transformers_checkpoint_starts_an_encoder(tmp_path):
    """MAE's file: the network under ``model`` with its decoder; the final norm is part of ours too."""
    torch.manual_seed(0)
    source = timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict()
    extra = {"mask_token": torch.ones(1, 1, 192), "decoder_blocks.0.norm1.weight": torch.ones(8)}
    torch.save({"model": source | extra}, tmp_path / "x.pth")
    encoder = build_encoder("vit_tiny_patch16_224")
    report = WeightsSource(str(tmp_path / "x.pth"), on_hub=False).fill(encoder)
    assert report.coverage == 1
    assert not report.missing
    assert sorted(report.unexpected) == sorted(extra)
    assert {k.removeprefix("net."): v.shape for k, v in encoder.state_dict().items()} == {
        k: v.shape for k, v in source.items()
    }


@pytest.mark.thorough
def test_a_published_unet_checkpoint_fills_encoder_and_decoder():
    source, target = build_unet("resnet18", "paper"), build_unet("resnet18", "paper")
    report = load_weights(
        target, {f"backbone.{k}": v for k, v in source.state_dict().items()} | {"w2d.bias": torch.ones(3)}
    )
    assert report.coverage == 1
    assert report.unexpected == ["w2d.bias"]
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in target.state_dict().items())


def test_the_callers_dictionary_is_left_alone(resnet, encoder):
    before = list(resnet)
    load_weights(encoder, resnet)
    assert list(resnet) == before


def test_timm_names_fit_timms_feature_networks():
    source = timm.create_model("convnext_atto").state_dict()
    target = build_encoder("convnext_atto")
    assert load_weights(target, source).coverage == 1
    assert torch.equal(
        target.net.state_dict()["stages_1.blocks.0.conv_dw.weight"], source["stages.1.blocks.0.conv_dw.weight"]
    )


def test_half_of_the_tensors_missing_is_an_error_and_changes_nothing(resnet, encoder):
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    half = dict(list(resnet.items())[: len(resnet) // 2])
    with pytest.raises(WeightsError, match=r"does not fit: \d+ matched, \d+ missing.*Missing: layer"):
        load_weights(encoder, half)
    assert equal(encoder, before)
    report = load_weights(encoder, half, minimum=0.0)
    assert report.missing
    assert "missing" in str(report)


def test_coverage_counts_elements(resnet, encoder):
    total = sum(v.numel() for k, v in encoder.state_dict().items() if "num_batches" not in k)
    largest = max(resnet, key=lambda k: resnet[k].numel())
    state = {k: v for k, v in resnet.items() if k != largest}
    report = load_weights(encoder, state, minimum=0.5)
    assert report.coverage == pytest.approx(1 - resnet[largest].numel() / total)
    assert report.missing == [largest]


def test_a_mix_of_a_start_and_an_end():
    start = {"w": torch.tensor([1.0, -3.0]), "n": torch.tensor(2)}
    end = {"w": torch.tensor([0.1, 1e6]), "n": torch.tensor(7)}
    torch.testing.assert_close(mix_states(start, end, 0.25)["w"], torch.tensor([0.775, 0.25e6 - 2.25]))
    for share, wanted in ((0.0, start), (1.0, end)):
        mixed = mix_states(start, end, share)
        assert torch.equal(mixed["w"], wanted["w"])
        assert int(mixed["n"]) == 7
    for other in ({"w": end["w"]}, {**end, "w": torch.ones(3)}, {**end, "x": end["w"]}):
        with pytest.raises(WeightsError, match="cannot be mixed"):
            mix_states(start, other, 0.5)


def test_wrong_shapes_are_listed(resnet, encoder):
    wrong = resnet | {"conv1.weight": torch.zeros(64, 4, 7, 7)}
    with pytest.raises(WeightsError, match=r"1 shapes differ.*conv1.weight: file 64x4x7x7, module 64x3x7x7"):
        load_weights(encoder, wrong)


def test_one_name_twice_is_an_error(resnet, encoder):
    both = {f"student.{k}": v for k, v in resnet.items()} | {f"backbone.{k}": v for k, v in resnet.items()}
    with pytest.raises(WeightsError, match=r"twice.*prefix"):
        load_weights(encoder, both)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 3, 1000, -100])
def test_truncated_files_say_so(tmp_path, resnet, suffix, keep):
    path = tmp_path / f"x{suffix}"
    small = {k: v.contiguous() for k, v in resnet.items() if v.numel() < 1000}
    torch.save(small, path) if suffix == ".pth" else save_file(small, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match="damaged"):
        read_state(path)


@pytest.mark.parametrize("legacy", [True, False])
def test_a_hostile_pickle_runs_nothing(tmp_path, legacy):
    path, target = tmp_path / "x.pth", tmp_path / "owned"
    content = {"state_dict": {"a": torch.zeros(2)}, "config": Hostile(target)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(WeightsError, match="runs no code"):
        read_state(path)
    path.write_bytes(pickle.dumps(Hostile(target), protocol=2))
    with pytest.raises(WeightsError, match=r"runs no code|damaged"):
        read_state(path)
    assert not target.exists()


def test_files_without_tensors_and_missing_files(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="no tensors"):
        read_state(tmp_path / "x.pth")
    torch.save([1, 2], tmp_path / "y.pth")
    with pytest.raises(WeightsError, match="no tensors"):
        read_state(tmp_path / "y.pth")
    with pytest.raises(WeightsError, match="no weights at"):
        read_state(tmp_path / "z.pth")
    with pytest.raises(WeightsError, match=r"weights.safetensors"):
        load_model(tmp_path)


def test_a_foreign_file_is_no_model(tmp_path, resnet):
    save_file({k: v.contiguous() for k, v in resnet.items()}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match="does not state its encoder"):
        load_model(tmp_path / "x.safetensors")
    assert read_provenance(tmp_path / "x.safetensors") == {}


def lying(record, path):
    """A file of a small U-Net whose header says something else."""
    unet = build_unet("resnet18", "slim", channels=7)
    save_state(unet.state_dict(), path, {"encoder": "resnet18", "decoder": "slim", "channels": 7} | record)
    return path


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"encoder": "resnet50"}, "does not fit the network"),
        ({"encoder": "resnet19"}, "unknown encoder 'resnet19'"),
        ({"encoder": ["resnet18"]}, "does not state its encoder"),
        ({"decoder": "paper"}, "does not fit the network"),
        ({"decoder": {}}, "unknown decoder"),
        ({"channels": 10**12}, "no decoder of 1000000000000 channels"),
        ({"channels": [7]}, "no decoder of"),
        ({"channels": 64}, "does not fit the network"),
    ],
)
def test_a_header_that_lies_is_found(tmp_path, record, message):
    with pytest.raises(WeightsError, match=message) as error:
        load_model(lying(record, tmp_path / "x.safetensors"))
    assert "x.safetensors" in str(error.value)


def test_init_choices(tmp_path, resnet, encoder, monkeypatch):
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    assert WeightsSource("scratch", on_hub=False).fill(encoder) is None
    assert equal(encoder, before)
    torch.save(resnet, tmp_path / "x.pth")
    assert WeightsSource(str(tmp_path / "x.pth"), on_hub=False).fill(encoder).coverage == 1
    assert equal(encoder, resnet)
    with pytest.raises(ConfigError, match="scratch, imagenet, timm:NAME"):
        WeightsSource("imagnet", on_hub=False).fill(encoder)
    with pytest.raises(ConfigError, match="no such model"):
        WeightsSource("timm:nothing", on_hub=False).fill(encoder)
    released = SimpleNamespace(state_dict=lambda: {k: v * 2 for k, v in resnet.items()})
    monkeypatch.setattr("timm.create_model", lambda name, pretrained: released)
    assert WeightsSource("timm:resnet18.a1_in1k", on_hub=False).fill(encoder).coverage == 1
    assert torch.equal(encoder.conv1.weight, resnet["conv1.weight"] * 2)


def test_init_imagenet_takes_the_librarys_weights(resnet, encoder, monkeypatch):
    pretrained = build_encoder("resnet18")
    monkeypatch.setattr(
        "pri3d.networks.load.build_encoder", lambda name, pretrained, options: asked.append(pretrained) or twin
    )
    asked, twin = [], pretrained
    assert WeightsSource("imagenet", on_hub=False).fill(encoder).coverage == 1
    assert asked == [True]
    assert equal(encoder, pretrained.state_dict())


@pytest.mark.thorough
def test_init_from_a_run_of_another_network_is_refused(tmp_path):
    save_model(build_unet("resnet34", "slim"), tmp_path / "weights.safetensors", {})
    with pytest.raises(WeightsError, match=r"holds a resnet34.*resnet18.*--encoder resnet34"):
        WeightsSource(str(tmp_path), on_hub=False).fill(build_encoder("resnet18"))
    encoder = build_encoder("resnet34")
    assert WeightsSource(str(tmp_path), on_hub=False).fill(encoder).coverage == 1


def test_timm_weights_that_cannot_be_fetched(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("offline")

    monkeypatch.setattr("timm.create_model", offline)
    with pytest.raises(WeightsError, match=r"resnet18.*offline"):
        WeightsSource("timm:resnet18", on_hub=False).fill(build_encoder("resnet18"))


def test_other_folders_open_networks_by_their_source_alone():
    """What reads a U-Net's file or first weights stands in networks; all else asks :class:`WeightsSource`."""
    package = Path(pri3d.__file__).parent
    inner = ("load_model", "build_stated_encoder")
    files = [path for path in package.rglob("*.py") if path.parent.name != "networks"]
    assert len(files) > 100
    wrong = [f"{path.relative_to(package)}: {name}" for path in files for name in inner if name in path.read_text()]
    assert wrong == []


@pytest.mark.thorough
def test_a_flipped_bit_in_weights_is_found_or_harmless(tmp_path):
    """Every part of the file is hit: the length of its header, each of the header's bytes, the tensors."""
    path = tmp_path / "x.safetensors"
    save_state({"a": torch.arange(40.0), "b.weight": torch.ones(3, 4)}, path, {"encoder": "resnet18", "steps": 7})
    good, state, record = path.read_bytes(), read_state(path), read_provenance(path)
    harmless = []
    for k in range(len(good)):
        damaged = bytearray(good)
        damaged[k] ^= 1 << k % 8
        path.write_bytes(damaged)
        for read in (read_state, read_provenance):
            try:
                now = read(path)
            except WeightsError as error:
                assert "x.safetensors is damaged (" in str(error), error
                continue
            if read is read_provenance:
                assert now == record
            else:
                assert all(torch.equal(now[key], value) for key, value in state.items())
                harmless.append(k)
    # The checksums' own name, without which they are not looked at, and what stands between them.
    name = good.index(b"pri3d_crc32")
    assert set(harmless) <= {*range(name, name + 11), name + 11 + 3 + 8}


def test_checksums_are_one_more_entry_for_others_and_may_be_absent(tmp_path):
    tensors = {"a": torch.arange(40.0)}
    save_state(tensors, tmp_path / "x.safetensors", {"steps": 7})
    assert torch.equal(load_file(tmp_path / "x.safetensors")["a"], tensors["a"])
    save_file(tensors, tmp_path / "old.safetensors", {"pri3d": '{"steps": 7}'})
    assert read_provenance(tmp_path / "old.safetensors") == {"steps": 7}
    assert torch.equal(read_state(tmp_path / "old.safetensors")["a"], tensors["a"])
