"""The only place that reads and writes weights: it reports what matched, and never runs code from a file.

A run's model is ``RUN/weights.safetensors``: the U-Net's state dict (keys ``encoder.*``, ``decoder.*``) with one JSON
record under the header key ``pri3d``: encoder, decoder, channels, preset, steps, init, data_hash, version. Beside it
are checksums, which are verified whenever the file is read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pri3d import __version__
from pri3d.errors import ConfigError, WeightsError, first_line
from pri3d.files.atomic import replacing
from pri3d.networks.encoders import Encoder, build_encoder
from pri3d.networks.lora import merged_state
from pri3d.networks.naming import name_of_naming, to_common_names
from pri3d.networks.state_files import (
    HUB_FILE,
    check_checksums,
    find_file,
    is_safetensors,
    read_state,
    refuse_no_weights,
    write_safetensors,
)
from pri3d.networks.unet import UNet
from pri3d.notation import parse_json

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
        raise WeightsError(
            f"{what}: {len(wrong)} shapes differ ({_some(wrong)}). Does it belong to another network or size?"
        )
    if report.coverage < minimum:
        naming = name_of_naming(state)
        whose = f". Its names are {naming}, which pri3d does not read" if naming else ""
        raise WeightsError(
            f"{what} does not fit: {report} (at least {minimum:.0%} needed). Missing: {_some(report.missing)}. "
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
        raise WeightsError(
            f"{what}: {len(wrong)} shapes differ ({_some(shapes)}). Does it belong to another network or size?"
        )
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
        raise WeightsError(f"{what}: {_some(packed)} are {kind}, quantised numbers. Give the file before quantisation")
    for key, value in taken.items():
        if not value.is_floating_point() or value.is_meta:
            continue
        if not bool(torch.isfinite(value).all()):
            raise WeightsError(
                f"{what}: {key} contains numbers that are not finite. Download it again, or use an earlier one"
            )
        if key.endswith("running_var") and bool((value < 0).any()):
            raise WeightsError(f"{what}: {key} holds negative variances. The file is damaged or has another layout")


def read_provenance(path: Path) -> dict[str, Any]:
    """Read the ``pri3d`` record of a weights file, run folder or export; empty for a file that pri3d did not write.

    Raises WeightsError for a missing or damaged file.
    """
    path = find_file(path)
    refuse_no_weights(path)
    if not is_safetensors(path) and path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        check_checksums(path, metadata, whole=False)
        record = parse_json(metadata.get("pri3d", "{}"))
    except Exception as error:  # whatever bytes may make the library raise
        raise WeightsError(f"{path} is damaged ({first_line(error)}): copy or download it again") from error
    if not isinstance(record, dict):
        raise WeightsError(f"{path}: the header's pri3d record is not a JSON object; the file is damaged")
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
            f"{path} does not state its encoder: it is not a model of a pri3d run. `pri3d import {path} "
            f"NEW.safetensors` "
            "converts a file of another program; pretrain and finetune take it directly as --weights"
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
            write_safetensors(tensors, part, header)
        except SafetensorError as error:  # the system's own is in its text alone
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        part.chmod(mode)  # the library makes it readable by its owner alone


def save_model(unet: UNet, path: Path, provenance: Mapping[str, Any], decoder: bool = True) -> None:
    """Write a U-Net so that :func:`load_model` rebuilds it; encoder, decoder, channels and version are filled in.

    Low-rank adapters are merged into the weights, so the file is a plain network's. ``decoder=False`` leaves the
    decoder out, which nothing has trained: the file then is that of an encoder.
    """
    built = {**stated_of(unet.encoder), "decoder": unet.decoder_name, "channels": unet.channels}
    state = {key: x for key, x in merged_state(unet).items() if decoder or not key.startswith("decoder.")}
    save_state(state, path, {"version": __version__, **provenance, **built})


def mix_states(start: Mapping[str, Tensor], end: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Interpolate two states of one network: ``start + share * (end - start)``, 0 the start and 1 the end, exactly.

    Between weights of one run and those it began with, networks in between are often better than either where images
    change (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022). Counters are those of the end.
    Raises WeightsError where names or shapes differ.
    """
    shapes = [{key: value.shape for key, value in state.items()} for state in (start, end)]
    wrong = sorted(key for key in start.keys() | end.keys() if shapes[0].get(key) != shapes[1].get(key))
    if wrong:
        raise WeightsError(
            f"two networks that differ in {_some(wrong)} cannot be mixed. Give a run and its own initial weights"
        )
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
        raise WeightsError(f"{path} does not state its {', '.join(absent)}: it is not a model of a pri3d run")
    # A fine-tuned network's classifier is the task's; its backbone loads like any other.
    state = {key: value for key, value in read_state(path).items() if not key.startswith("classifier.")}
    if not any(key.startswith("decoder.") for key in state):
        raise WeightsError(
            f"{path} holds an encoder alone, not a whole U-Net: its objectives trained no decoder, or it is an export "
            "of the encoder. Take the encoder's features, or pass it as --weights"
        )
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
