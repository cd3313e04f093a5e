"""The one place that reads and writes weights: loud about what matched, and never running what a file contains.

A run's model is ``RUN/weights.safetensors``: the U-Net's state dict (keys ``encoder.*``, ``decoder.*``) with one JSON
record under the header key ``pri3d``: encoder, decoder, channels, preset, steps, init, data_hash, version.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from pri3d import __version__
from pri3d.errors import ConfigError, WeightsError
from pri3d.models.encoders import Encoder, build_encoder
from pri3d.models.lora import merged_state
from pri3d.models.unet import UNet

MODEL_FILE = "weights.safetensors"

#: dictionaries that checkpoints are nested in, outermost first; of DINO's two the teacher is the one to use
NESTS = ("state_dict", "model", "model_state_dict", "network", "net", "teacher")

#: wrappers around a backbone's own names: data parallel, compiled, Lightning; MoCo v1 to v3 (not their momentum
#: copies ``encoder_k`` and ``momentum_encoder``), SimCLR, DINO; timm features; ours
PREFIXES = re.compile(
    r"^(?:module|_forward_module|_orig_mod|state_dict|model|net|network|unet|student|backbone|encoder"
    r"|encoder_q|base_encoder|convnet)\."
)


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
    given = _by_plain_name(state, what)
    own = module.state_dict()
    wanted = _by_plain_name(own, "the module")
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
        raise WeightsError(
            f"{what} does not fit: {report} (at least {minimum:.0%} asked). Missing: {_some(report.missing)}. "
            f"Unexpected: {_some(report.unexpected)}. Check that the file is of the same network"
        )
    module.load_state_dict(taken, strict=False)
    return report


def init_encoder(encoder: Encoder, init: str) -> WeightsReport | None:
    """Give an encoder its first weights, in place (paper, "Stage I: Pri3D encoder initialization").

    ``init`` is ``scratch`` (leaves it as built, returns None), ``imagenet`` (the library's weights), ``timm:NAME``
    (weights of a timm model), or a file or run folder. Raises ConfigError for anything else, WeightsError where the
    weights cannot be had or do not fit.
    """
    if init == "scratch":
        return None
    if init == "imagenet":
        return load_weights(encoder, build_encoder(encoder.name, pretrained=True).state_dict(), minimum=1.0)
    if init.startswith("timm:"):
        return load_weights(encoder, build_timm_state(init.removeprefix("timm:")))
    check_init(init)
    path = Path(init)
    made_for = read_provenance(path).get("encoder")
    if made_for is not None and made_for != encoder.name:
        raise WeightsError(f"{path} holds a {made_for}, the run asks for {encoder.name}: pass --encoder {made_for}")
    return load_weights(encoder, path)


def check_init(init: str) -> None:
    """Refuse what ``--init`` cannot be, before a network is built. Raises ConfigError with the choices."""
    if init in {"scratch", "imagenet"} or init.startswith("timm:") or Path(init).exists():
        return
    raise ConfigError(f"--init {init!r}: no such file. Choices: scratch, imagenet, timm:NAME, or a weights file")


def build_timm_state(name: str) -> dict[str, Tensor]:
    """State dict of timm's pretrained ``name`` with its own keys. Raises ConfigError or WeightsError."""
    if not timm.is_model(name):
        raise ConfigError(f"--init timm:{name}: timm has no such model; see timm.list_models(pretrained=True)")
    try:
        state: dict[str, Tensor] = timm.create_model(name, pretrained=True).state_dict()
    except (OSError, RuntimeError) as error:
        raise WeightsError(f"the weights of timm's {name} cannot be fetched: {_reason(error)}") from error
    return state


def read_state(path: Path) -> dict[str, Tensor]:
    """State dict of a .safetensors or torch file, or of a run folder; nothing in the file is executed.

    Raises WeightsError for a missing, damaged or unsafe file, or one without tensors.
    """
    path = _file(path)
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no dict)
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{path} is damaged ({error}): copy or download it again") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is not a plain file of tensors, and pri3d runs no code out of files ({_reason(error)})"
            ". If it is damaged, fetch it again; if you trust it, re-save its tensors alone: "
            "torch.save(torch.load(PATH, weights_only=False)['state_dict'], 'clean.pth')"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, LookupError) as error:
        raise WeightsError(f"{path} is damaged or no torch file ({_reason(error)}): fetch it again") from error
    return _unnest(content, path)


def read_provenance(path: Path) -> dict[str, Any]:
    """Read the ``pri3d`` record of a weights file or run folder; empty for a file that pri3d did not write."""
    path = _file(path)
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {}).get("pri3d", "{}"))
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise WeightsError(f"{path} is damaged ({error}): copy or download it again") from error
    if not isinstance(record, dict):
        raise WeightsError(f"{path}: the header's pri3d record is no JSON object; the file is damaged")
    return record


def save_state(state: Mapping[str, Tensor], path: Path, provenance: Mapping[str, Any]) -> None:
    """Write tensors and their ``pri3d`` record as safetensors, under a temporary name that is then renamed."""
    temporary = path.with_name(f".{path.name}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    header = {"format": "pt", "pri3d": json.dumps(dict(provenance), sort_keys=True)}
    temporary.write_bytes(save(tensors, metadata=header))  # save_file would make it readable by its owner alone
    temporary.replace(path)


def save_model(unet: UNet, path: Path, provenance: Mapping[str, Any]) -> None:
    """Write a U-Net so that :func:`load_model` rebuilds it; encoder, decoder, channels and version are filled in.

    Low-rank adapters are merged into the weights, so the file is a plain network's.
    """
    built = {"encoder": unet.encoder.name, "decoder": unet.decoder_name, "channels": unet.channels}
    save_state(merged_state(unet), path, {"version": __version__, **provenance, **built})


def load_model(path: Path) -> tuple[UNet, dict[str, Any]]:
    """Rebuild the U-Net of a weights file or run folder, on the CPU in eval mode, and return it with its record.

    Raises WeightsError where the file is not one of :func:`save_model` or is damaged.
    """
    record = read_provenance(path)
    absent = [key for key in ("encoder", "decoder", "channels") if key not in record]
    if absent:
        raise WeightsError(f"{path} does not say its {', '.join(absent)}: it is no model of a pri3d run")
    if record.get("part") == "encoder":
        raise WeightsError(f"{path} holds an encoder alone, not a whole model: pass it as --init")
    unet = UNet(build_encoder(str(record["encoder"])), str(record["decoder"]), int(record["channels"]))
    # A fine-tuned network's classifier is the task's; its backbone loads like any other.
    state = {key: value for key, value in read_state(path).items() if not key.startswith("classifier.")}
    try:
        unet.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(f"{path} does not fit the network its header names: {error}") from error
    return unet.eval(), record


def _file(path: Path) -> Path:
    file = path / MODEL_FILE if path.is_dir() else path
    if not file.is_file():
        raise WeightsError(f"no weights at {file}: give a weights file or the folder of a finished run")
    return file


def _unnest(content: Any, path: Path) -> dict[str, Tensor]:
    """Find the dictionary of tensors inside a checkpoint's content."""
    while isinstance(content, Mapping):
        inner = next((content[key] for key in NESTS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    state = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not state:
        raise WeightsError(f"{path} holds no tensors by name (looked in {', '.join(NESTS)}): give a state dict")
    return state


def _by_plain_name(state: Mapping[str, Tensor], what: str) -> dict[str, str]:
    """Key without wrappers -> key. timm's flattened 'stages_0' and its plain 'stages.0' become one name."""
    plain: dict[str, str] = {}
    for key in state:
        name, count = key, 1
        while count:
            name, count = PREFIXES.subn("", name)
        name = re.sub(r"^([a-z]+)\.(\d+)\.", r"\1_\2.", name)
        if name in plain:
            raise WeightsError(f"{what} holds {name!r} twice, as {plain[name]!r} and {key!r}: choose one with a prefix")
        plain[name] = key
    return plain


def _optional(key: str) -> bool:
    """Whether a key may be absent on either side: counters of batch norm, the classifier."""
    return key.endswith("num_batches_tracked") or re.search(r"(^|\.)(fc|classifier)\.", key) is not None


def _elements(own: Mapping[str, Tensor], keys: Mapping[str, Tensor]) -> int:
    return sum(own[key].numel() for key in keys if not key.endswith("num_batches_tracked"))


def _reason(error: Exception) -> str:
    """First line of an exception's text, its kind where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def _shape(x: Tensor) -> str:
    return "x".join(str(n) for n in x.shape) or "scalar"


def _some(items: list[str]) -> str:
    return ", ".join(items[:5]) + (f" and {len(items) - 5} more" if len(items) > 5 else "") if items else "none"
