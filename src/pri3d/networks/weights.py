"""The one place that reads and writes weights: loud about what matched, and never running what a file contains.

A run's model is ``RUN/weights.safetensors``: the U-Net's state dict (keys ``encoder.*``, ``decoder.*``) with one JSON
record under the header key ``pri3d``: encoder, decoder, channels, preset, steps, init, data_hash, version.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pri3d import __version__
from pri3d.errors import ConfigError, WeightsError, first_line
from pri3d.files.atomic import replacing
from pri3d.networks.encoders import Encoder, build_encoder
from pri3d.networks.lora import merged_state
from pri3d.networks.naming import name_of_naming, to_common_names
from pri3d.networks.unet import UNet
from pri3d.notation import parse_json

MODEL_FILE = "weights.safetensors"
HUB_FILE = "model.safetensors"  #: what a model's folder on a hub has in its place
INITIAL_FILE = "initial.safetensors"  #: the network before a run's training, never what a folder stands for

#: dictionaries that checkpoints are nested in, outermost first; of DINO's two the teacher is the one to use. Moving
#: averages last: where a file has both, the network itself is taken
AVERAGES = ("model_ema", "state_dict_ema", "ema_state_dict", "ema")
NESTS = ("state_dict", "model", "model_state_dict", "network", "net", "teacher", *AVERAGES)

#: what re-saves the tensors of a file that needs code, for who trusts it; names of one folder
CLEAN = (
    "python -c \"import torch; d = torch.load(PATH, weights_only=False); d = getattr(d, 'state_dict', lambda: d)(); "
    f"d = next((d[k] for k in {NESTS[:6]} if k in d), d); "
    "torch.save({k: v for k, v in d.items() if torch.is_tensor(v)}, 'clean.pth')\""
)
CLEAN_PICKLE = (
    "import pickle, torch; d = pickle.load(open(PATH, 'rb')); "
    "torch.save({k: torch.as_tensor(v) for k, v in d.get('model', d).items()}, 'clean.pth')"
)

#: endings and first bytes of weights that are no torch file -> whose they are
OTHER_PROGRAMS = {
    **dict.fromkeys((".h5", ".hdf5", ".keras"), "Keras"),
    ".onnx": "ONNX",
    ".tflite": "TensorFlow Lite",
    ".pb": "TensorFlow",
    ".msgpack": "Flax",
    ".gguf": "llama.cpp",
    ".npz": "NumPy",
    ".npy": "NumPy",
    ".mat": "MATLAB",
    ".caffemodel": "Caffe",
}
OTHER_STARTS = {b"\x89HDF\r\n\x1a\n": "Keras (HDF5)", b"GGUF": "llama.cpp"}

#: first bytes of what a download leaves in the place of weights -> what it is, and what to do
NO_WEIGHTS = {
    b"version https://git-lfs": "a pointer of git-lfs: `git lfs pull` in its folder fetches the weights themselves",
    **dict.fromkeys(
        (b"<!doctype", b"<html", b"<?xml", b"<head"), "a web page: its link leads to a page, download the file itself"
    ),
    **dict.fromkeys((b"{", b"["), "JSON text: see what it says, and download the file itself"),
    **dict.fromkeys((b"\x89png", b"\xff\xd8\xff", b"gif8"), "an image: give a weights file"),
    **dict.fromkeys((b"\x1f\x8b", b"bzh", b"\xfd7zxz", b"7z\xbc\xaf", b"rar!"), "a packed file: unpack it first"),
    b"%pdf": "a PDF: give a weights file",
}

#: classes of settings and counters that training scripts put beside the tensors; never called, an empty stand-in is
HARMLESS = (
    "argparse.Namespace",
    *(f"pathlib.{kind}" for kind in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
    *(f"pathlib._local.{kind}" for kind in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
    *("numpy.dtype", "numpy.ndarray", "collections.defaultdict", "typing.Any"),
    *(f"numpy.{core}.multiarray.{kind}" for core in ("core", "_core") for kind in ("scalar", "_reconstruct")),
    *("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig", "omegaconf.nodes.AnyNode"),
    *("omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata"),
    *("mmengine.logging.history_buffer.HistoryBuffer", "mmengine.config.config.ConfigDict"),
    *("mmcv.utils.config.ConfigDict", "addict.addict.Dict", "easydict.EasyDict", "yacs.config.CfgNode"),
    *("pytorch_lightning.utilities.parsing.AttributeDict", "lightning.fabric.utilities.data.AttributeDict"),
    *("lightning_fabric.utilities.data.AttributeDict", "detectron2.config.config.CfgNode"),
)

#: wrappers around a backbone's own names: data parallel, compiled, Lightning; MoCo v1 to v3 (not their momentum
#: copies ``encoder_k`` and ``momentum_encoder``), SimCLR, DINO; timm features; ours
PREFIXES = re.compile(
    r"^(?:(?:module|_forward_module|_orig_mod|state_dict|model|net|network|unet|student|backbone|encoder"
    r"|encoder_q|base_encoder|convnet)\.)+"
)


class _Unfilled(TorchFunctionMode):
    """Leaves out random numbers: on the meta device there are none, and asking for them loads PyTorch's compiler."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The tensor as it is for what would fill it."""
        skipped = function in (Tensor.normal_, Tensor.uniform_)
        return args[0] if skipped else function(*args, **(kwargs or {}))


class _StandIn(dict[Any, Any]):
    """In the place of an object of another program: it takes what such an object is made of, and does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, _: Any) -> None:
        """Nothing is kept."""

    __hash__ = object.__hash__  # type: ignore[assignment]


class WeightsReport(NamedTuple):
    """What a load did; ``str()`` of it is the line to show."""

    matched: list[str]  #: keys of the module that were filled
    missing: list[str]  #: keys of the module the file lacks: they keep their values
    unexpected: list[str]  #: keys of the file the module has no use for
    coverage: float  #: share of the module's elements that were filled, 0..1

    def __str__(self) -> str:
        counts = f"{len(self.matched)} matched, {len(self.missing)} missing, {len(self.unexpected)} unexpected tensors"
        return f"{counts}; {self.coverage:.1%} of the elements filled"


def load_weights(
    module: nn.Module, source: Path | str | Mapping[str, Tensor], *, prefix: str | None = None, minimum: float = 0.9
) -> WeightsReport:
    """Fill ``module`` in place from a file, a run folder or a state dict, whatever its keys are wrapped in.

    Wrapper prefixes (``module.``, ``backbone.``, ``encoder_q.``, ...) are dropped on both sides before names are
    compared: files of MoCo, SimCLR, SwAV, DINO, MAE and of the paper's authors load as they are (paper, "Stage I").
    ``prefix`` takes only the keys that start with it. To load an encoder's file into a U-Net pass
    ``unet.encoder``. Raises WeightsError, with the module unchanged, where less than ``minimum`` of the module's
    elements are matched, a shape differs, two keys mean the same parameter, or the file cannot be read safely.
    """
    what = "the given state dict" if isinstance(source, Mapping) else str(source)
    state = dict(source) if isinstance(source, Mapping) else read_state(Path(source))
    if prefix is not None:
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    given = plain_names(state := to_common_names(state), what)
    own = module.state_dict()
    wanted = plain_names(own, "the module")
    taken = {key: state[given[plain]] for plain, key in wanted.items() if plain in given}
    wrong = [f"{k}: file {_shape(v)}, module {_shape(own[k])}" for k, v in taken.items() if v.shape != own[k].shape]
    report = WeightsReport(
        matched=list(taken),
        missing=[key for plain, key in wanted.items() if plain not in given and not _optional(key)],
        unexpected=[key for plain, key in given.items() if plain not in wanted and not _optional(key)],
        coverage=_elements(own, taken) / max(_elements(own, own), 1),
    )
    if wrong:
        raise WeightsError(f"{what}: {len(wrong)} shapes differ ({_some(wrong)}). Is it another network or size?")
    if report.coverage < minimum:
        naming = name_of_naming(state)
        whose = f". Its names are {naming}, which pri3d does not read" if naming else ""
        raise WeightsError(
            f"{what} does not fit: {report} (at least {minimum:.0%} asked). Missing: {_some(report.missing)}. "
            f"Unexpected: {_some(report.unexpected)}{whose}. Check that the file is of the same network"
        )
    _refuse_impossible(taken, own, what)
    module.load_state_dict(taken, strict=False)
    return report


def check_fit(net: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Refuse tensors that do not fill ``net``, which may be on the meta device: nothing of its size is made.

    Raises WeightsError.
    """
    own = net.state_dict()
    given, wanted = plain_names(state, what), plain_names(own, "the network")
    missing = [key for plain, key in wanted.items() if plain not in given and not _optional(key)]
    wrong = [key for plain, key in wanted.items() if plain in given and state[given[plain]].shape != own[key].shape]
    if wrong:
        shapes = [
            f"{key}: file {_shape(state[given[p]])}, module {_shape(own[key])}"
            for p, key in wanted.items()
            if key in wrong
        ]
        raise WeightsError(f"{what}: {len(wrong)} shapes differ ({_some(shapes)}). Is it another network or size?")
    if missing:
        naming = name_of_naming(state)
        whose = f". Its names are {naming}, which pri3d does not read" if naming else ""
        matched = len(wanted) - len(missing)
        raise WeightsError(f"{what} does not fit: {matched} matched, {len(missing)} missing: {_some(missing)}{whose}")


def _refuse_impossible(taken: Mapping[str, Tensor], own: Mapping[str, Tensor], what: str) -> None:
    """Refuse values that no network can have. Raises WeightsError."""
    packed = [key for key, value in taken.items() if own[key].is_floating_point() and not value.is_floating_point()]
    if packed:
        kind = str(taken[packed[0]].dtype).removeprefix("torch.")
        raise WeightsError(f"{what}: {_some(packed)} are {kind}, packed numbers. Give the file before it was quantised")
    for key, value in taken.items():
        if not value.is_floating_point() or value.is_meta:
            continue
        if not bool(torch.isfinite(value).all()):
            raise WeightsError(
                f"{what}: {key} holds numbers that are not finite. Fetch it again, or take an earlier one"
            )
        if key.endswith("running_var") and bool((value < 0).any()):
            raise WeightsError(f"{what}: {key} holds negative variances. The file is damaged or of another layout")


def is_safetensors(path: Path) -> bool:
    """Whether the first bytes of a file are those of safetensors: the length of a header, which is JSON."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size


def read_state(path: Path) -> dict[str, Tensor]:
    """State dict of a .safetensors or torch file, or of a run's or export's folder; nothing in the file is executed.

    The tensors lie in the file until they are used: it is mapped, not read (but for torch files from before 1.6).
    Raises WeightsError for a missing, damaged or unsafe file, or one without tensors.
    """
    return read_nested(path)[0]


def read_nested(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """As :func:`read_state`, and the names of the averages that lie beside what was taken."""
    path = find_file(path)
    _refuse_no_weights(path)
    if is_safetensors(path) or path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, []  # noqa: SIM118 (no dict)
        except Exception as error:  # whatever bytes may make the library raise
            raise WeightsError(f"{path} is damaged ({first_line(error)}): copy or download it again") from error
    content = _read_torch(path)
    averages: list[str] = []
    for _ in NESTS:  # so often at most: a hostile one contains itself
        if isinstance(content, Mapping):
            found = [key for key in NESTS if isinstance(content.get(key), Mapping)]
            found = [key for key in found if not isinstance(content[key], _StandIn)]
            averages += [key for key in found[1:] if key in AVERAGES]
            content = content[found[0]] if found else content
    state: dict[str, Tensor] = {}
    for key, value in content.items() if isinstance(content, Mapping) else ():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            continue
        # All its numbers must be in memory: a file may state one a thousand million times.
        dense = value.layout == torch.strided and not value.is_meta and not value.is_quantized
        if dense and value.numel() * value.element_size() <= value.untyped_storage().nbytes():
            state[key] = value
    if not state:
        raise WeightsError(f"{path} holds no tensors by name (looked in {', '.join(NESTS)}): give a state dict")
    return state, averages


def _refuse_no_weights(path: Path) -> None:
    """Say what a file is that is told by its first bytes to be no weights. Raises WeightsError."""
    if is_safetensors(path):
        return
    with path.open("rb") as file:
        start = file.read(64).lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    if path.stat().st_size == 0:
        raise WeightsError(f"{path} is damaged (it is empty): fetch it again")
    what = next((what for head, what in NO_WEIGHTS.items() if start.startswith(head)), None)
    if path.suffix == ".safetensors" and zipfile.is_zipfile(path):
        what = "a torch file, not safetensors: give it a name that ends in .pth"
    if what is not None:
        raise WeightsError(f"{path} is {what}")


def _read_torch(path: Path) -> Any:
    """Content of a torch file, made of tensors and plain values alone. Raises WeightsError for anything else."""
    with path.open("rb") as file:
        start = file.read(8)
    other = OTHER_PROGRAMS.get(path.suffix.lower()) or next(
        (n for head, n in OTHER_STARTS.items() if start.startswith(head)), ""
    )
    if other:
        raise WeightsError(
            f"{path} is a file of {other}: pri3d reads safetensors and torch files. Write its weights as a state dict "
            "with the program that made it, under the names of torchvision or timm"
        )
    archive = is_sound_archive(path)
    if not archive and path.suffix in (".pkl", ".pickle"):
        raise WeightsError(
            f"{path} is a pickle, which can hold any program, and pri3d runs no code out of files. If you trust it, "
            f'write its tensors to a file of tensors alone: python -c "{CLEAN_PICKLE}"'
        )
    try:
        with torch.serialization.safe_globals([(_StandIn, name) for name in HARMLESS]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        raise WeightsError(
            f"{path} is not a plain file of tensors{f' but asks for {wanted[1]}' if wanted else ''}, and pri3d runs no "
            f"code out of files. If it is damaged, fetch it again; if you trust it, re-save its tensors alone: {CLEAN}"
        ) from error
    except Exception as error:  # whatever bytes may make torch raise
        raise WeightsError(f"{path} is damaged or no torch file ({first_line(error)}): fetch it again") from error


def is_sound_archive(path: Path) -> bool:
    """Whether a file is a zip archive, as torch's are since 1.6; if so, its checksums, which torch leaves out, hold.

    Raises WeightsError where they do not, and for one that would unpack to more than its size: torch compresses
    nothing.
    """
    try:
        if not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            packed = [member.filename for member in members if member.compress_type != zipfile.ZIP_STORED]
            if packed:
                what = f"{packed[0]} is compressed"
            elif sum(member.file_size for member in members) > path.stat().st_size:
                what = "its parts are larger than the whole"
            elif wrong := archive.testzip():
                what = f"the checksum of {wrong} is wrong"
            else:
                return True
    except (zipfile.BadZipFile, ValueError, OSError, RuntimeError, EOFError) as error:
        what = first_line(error)
    raise WeightsError(f"{path} is damaged or no torch file ({what}): fetch it again")


def read_provenance(path: Path) -> dict[str, Any]:
    """Read the ``pri3d`` record of a weights file, run folder or export; empty for a file that pri3d did not write.

    Raises WeightsError for a missing or damaged file.
    """
    path = find_file(path)
    _refuse_no_weights(path)
    if not is_safetensors(path) and path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            record = parse_json((file.metadata() or {}).get("pri3d", "{}"))
    except Exception as error:  # whatever bytes may make the library raise
        raise WeightsError(f"{path} is damaged ({first_line(error)}): copy or download it again") from error
    if not isinstance(record, dict):
        raise WeightsError(f"{path}: the header's pri3d record is no JSON object; the file is damaged")
    config = path.with_name("config.json")
    if record or path.name != HUB_FILE or not config.is_file():
        return record
    # The hub's library writes no header of ours: the record is in the folder's config.json.
    try:
        record = parse_json(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{config} is damaged ({first_line(error)}): copy or download it again") from error
    if not isinstance(record, dict):
        return {}
    # Of version 0.1: the record itself. transformers' `encoder` is a dictionary.
    ours = record.get("pri3d", record if isinstance(record.get("encoder"), str) else {})
    return ours if isinstance(ours, dict) else {}


def holds_encoder_alone(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict of pri3d is an encoder's own: in a run's, its keys lie under ``encoder.``."""
    return not any(key.startswith("encoder.") for key in state)


def stated_of(encoder: Encoder) -> dict[str, Any]:
    """What a weights file says of its encoder, of which :func:`build_stated_encoder` builds it again."""
    own = {"encoder_options": encoder.built_with} if encoder.built_with else {}
    return {"encoder": encoder.name, **own}


def build_stated_encoder(path: Path, record: Mapping[str, Any], state: Mapping[str, Tensor]) -> Encoder:
    """Build the encoder that a file's record names, untrained. Raises WeightsError as :func:`check_stated_encoder`."""
    check_stated_encoder(path, record, state)
    return build_encoder(record["encoder"], options=record.get("encoder_options"))


def check_stated_encoder(path: Path, record: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Refuse a file that names an encoder of other tensors than those of ``state``, the file's.

    They are compared before anything of their size is made: a small file may name a network of any size. Raises
    WeightsError, also where it names none that exists.
    """
    name, options = record.get("encoder"), record.get("encoder_options")
    if not isinstance(name, str):
        raise WeightsError(
            f"{path} does not say its encoder: it is no model of a pri3d run. `pri3d import {path} NEW.safetensors` "
            "makes one of a file of another program; pretrain and finetune take it for --weights as it is"
        )
    if not isinstance(options, Mapping | None):
        raise WeightsError(f"{path}: the options of its encoder are no names with values; the file is damaged")
    prefix = "" if holds_encoder_alone(state) else "encoder."
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    try:
        with (
            suppress(NotImplementedError),
            torch.device("meta"),
            _Unfilled(),
        ):  # some ask for numbers
            net = build_encoder(name, options=options)
            try:
                check_fit(net, own, name)
            except WeightsError as error:
                raise WeightsError(f"{path} does not fit the network its header names: {error}") from error
    except ConfigError as error:
        raise WeightsError(f"{path}: {error}") from error


def save_state(state: Mapping[str, Tensor], path: Path, provenance: Mapping[str, Any]) -> None:
    """Write tensors and their ``pri3d`` record as safetensors, under a temporary name that is then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    header = {"format": "pt", "pri3d": json.dumps(dict(provenance), sort_keys=True)}
    with replacing(path) as part:
        part.touch()
        mode = part.stat().st_mode
        try:
            save_file(tensors, part, metadata=header)
        except SafetensorError as error:  # the system's own is in its text alone
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        part.chmod(mode)  # the library makes it readable by its owner alone


def save_model(unet: UNet, path: Path, provenance: Mapping[str, Any]) -> None:
    """Write a U-Net so that :func:`load_model` rebuilds it; encoder, decoder, channels and version are filled in.

    Low-rank adapters are merged into the weights, so the file is a plain network's.
    """
    built = {**stated_of(unet.encoder), "decoder": unet.decoder_name, "channels": unet.channels}
    save_state(merged_state(unet), path, {"version": __version__, **provenance, **built})


def mix_states(start: Mapping[str, Tensor], end: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Interpolate two states of one network: ``start + share * (end - start)``, 0 the start and 1 the end, exactly.

    Between weights of one run and those it began with, networks in between are often better than either where images
    change (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022). Counters are those of the end.
    Raises WeightsError where names or shapes differ.
    """
    shapes = [{key: value.shape for key, value in state.items()} for state in (start, end)]
    wrong = sorted(key for key in start.keys() | end.keys() if shapes[0].get(key) != shapes[1].get(key))
    if wrong:
        raise WeightsError(f"two networks that differ in {_some(wrong)} cannot be mixed. Give a run and its own start")
    return {
        key: torch.lerp(start[key], value, share) if value.is_floating_point() else value for key, value in end.items()
    }


def load_model(path: Path) -> tuple[UNet, dict[str, Any]]:
    """Rebuild the U-Net of a weights file or run folder, on the CPU in eval mode, and return it with its record.

    Raises WeightsError where the file is not one of :func:`save_model` or is damaged.
    """
    record = read_provenance(path)
    absent = [key for key in ("encoder", "decoder", "channels") if key not in record]
    if absent:
        raise WeightsError(f"{path} does not say its {', '.join(absent)}: it is no model of a pri3d run")
    # A fine-tuned network's classifier is the task's; its backbone loads like any other.
    state = {key: value for key, value in read_state(path).items() if not key.startswith("classifier.")}
    if holds_encoder_alone(state):
        raise WeightsError(f"{path} holds an encoder alone, not a whole model: pass it as --weights")
    encoder, channels = build_stated_encoder(path, record, state), record["channels"]
    # Looked up before anything of that size is made: a damaged header may claim any number.
    if not isinstance(channels, int) or channels not in {
        int(v.shape[0]) for k, v in state.items() if k.startswith("decoder.") and v.ndim
    }:
        raise WeightsError(f"{path} does not fit the network its header names: no decoder of {channels} channels")
    try:
        unet = UNet(encoder, str(record["decoder"]), channels)
        unet.load_state_dict(state)
    except (RuntimeError, ConfigError) as error:
        raise WeightsError(f"{path} does not fit the network its header names: {error}") from error
    return unet.eval(), record


def find_file(path: Path) -> Path:
    """The weights file that a path stands for. Raises WeightsError where there is none, or no telling which."""
    if not path.is_dir():
        if path.is_file():
            return path
        raise WeightsError(f"no weights at {path}: give a weights file or the folder of a finished run")
    for name in (MODEL_FILE, HUB_FILE):
        if (path / name).is_file():
            return path / name
    others = [file for file in sorted(path.glob("*.safetensors")) if file.name != INITIAL_FILE]
    if len(others) == 1 and not (path / INITIAL_FILE).exists():
        return others[0]
    found = f" (there are {', '.join(file.name for file in others)}: name one)" if others else ""
    raise WeightsError(f"no weights at {path / MODEL_FILE}{found}: give a weights file or the folder of a finished run")


def plain_names(state: Mapping[str, Tensor], what: str) -> dict[str, str]:
    """Key without wrappers -> key, for comparing names. timm's flattened 'stages_0' and plain 'stages.0' become one.

    ``what`` names the state dict in the WeightsError that is raised where two keys become the same.
    """
    plain: dict[str, str] = {}
    for key in state:
        name = re.sub(r"^([a-z]+)\.(\d+)\.", r"\1_\2.", PREFIXES.sub("", key))
        if name in plain:
            raise WeightsError(f"{what} holds {name!r} twice, as {plain[name]!r} and {key!r}: choose one with a prefix")
        plain[name] = key
    return plain


def _optional(key: str) -> bool:
    """Whether a key may be absent on either side: counters of batch norm, the classifier."""
    return key.endswith("num_batches_tracked") or re.search(r"(^|\.)(fc|classifier)\.", key) is not None


def _elements(own: Mapping[str, Tensor], keys: Mapping[str, Tensor]) -> int:
    return sum(own[key].numel() for key in keys if not key.endswith("num_batches_tracked"))


def _shape(x: Tensor) -> str:
    return "x".join(str(n) for n in x.shape) or "scalar"


def _some(items: list[str]) -> str:
    return ", ".join(items[:5]) + (f" and {len(items) - 5} more" if len(items) > 5 else "") if items else "none"
