"""``pri3d import``: a checkpoint of another program -> a weights file of pri3d, complete or not at all.

Which network a file is of is told by names and shapes: of each candidate that could be, the tensors are compared.
Names of other programs are those of :mod:`pri3d.networks.naming`.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Set
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from pri3d import __version__, registry
from pri3d.api.import_weights import ImportOptions
from pri3d.errors import ConfigError, WeightsError, first_line
from pri3d.files.atomic import usable
from pri3d.networks.encoders import Encoder, build_encoder
from pri3d.networks.naming import (
    DETECTRON2,
    from_detectron2,
    from_efficientnet,
    from_torchvision_convnext,
    name_of_naming,
    to_common_names,
)
from pri3d.networks.published import WRAPPERS, fill_unet, read_published
from pri3d.networks.resnet import SIZES
from pri3d.networks.state_files import HUB_FILE, find_file, read_nested
from pri3d.networks.unet import UNet
from pri3d.networks.weights import (
    PREFIXES,
    WeightsReport,
    check_fit,
    load_weights,
    plain_names,
    read_provenance,
    save_model,
    save_state,
)
from pri3d.notation import parse_json

BIASED = "_qkvb"  #: in timm's names of DINOv3 with biases of query and value
PATCHES = "patch_embed.proj.weight"

#: a tensor without wrappers and its shape -> the common networks that have it; of any other the name is asked for
FAMILIES: dict[tuple[str, tuple[int, ...]], tuple[str, ...]] = {
    ("conv1.weight", (64, 3, 7, 7)): tuple(SIZES),
    (PATCHES, (192, 3, 16, 16)): ("vit_tiny_patch16_224.augreg_in21k_ft_in1k", "deit_tiny_patch16_224.fb_in1k"),
    (PATCHES, (384, 3, 16, 16)): (
        *("vit_small_patch16_224.augreg_in21k_ft_in1k", "vit_small_patch16_224.dino"),
        *(f"vit_small{plus}_patch16_dinov3{bias}.lvd1689m" for plus in ("", "_plus") for bias in ("", "_qkvb")),
    ),
    (PATCHES, (768, 3, 16, 16)): (
        *("vit_base_patch16_224.augreg_in21k_ft_in1k", "vit_base_patch16_224.mae"),
        *("vit_base_patch16_dinov3.lvd1689m", "vit_base_patch16_dinov3_qkvb.lvd1689m"),
    ),
    (PATCHES, (1024, 3, 16, 16)): (
        *("vit_large_patch16_224.augreg_in21k_ft_in1k", "vit_large_patch16_224.mae"),
        *("vit_large_patch16_dinov3.lvd1689m", "vit_large_patch16_dinov3_qkvb.lvd1689m"),
    ),
    (PATCHES, (384, 3, 8, 8)): ("vit_small_patch8_224.dino",),
    (PATCHES, (768, 3, 8, 8)): ("vit_base_patch8_224.dino",),
    (PATCHES, (1280, 3, 14, 14)): ("vit_huge_patch14_224.mae",),
    **{
        (PATCHES, (width, 3, 14, 14)): (f"vit_{size}_patch14_dinov2.lvd142m", f"vit_{size}_patch14_reg4_dinov2.lvd142m")
        for size, width in {"small": 384, "base": 768, "large": 1024, "giant": 1536}.items()
    },
    (PATCHES, (96, 3, 4, 4)): tuple(f"swin_{size}_patch4_window7_224.ms_in1k" for size in ("tiny", "small")),
    (PATCHES, (128, 3, 4, 4)): ("swin_base_patch4_window7_224.ms_in1k",),
    **{
        (stem, (width, 3, 4, 4)): tuple(f"convnext_{size}.fb_in1k" for size in sizes)
        for stem in ("stem_0.weight", "downsample_layers.0.0.weight")  # timm's name and that of the release
        for width, sizes in {96: ("tiny", "small"), 128: ("base",), 192: ("large",)}.items()
    },
    # efficientnet_pytorch pads as TensorFlow does; timm has networks of both paddings with the same tensors
    ("_conv_stem.weight", (32, 3, 3, 3)): (
        *(f"tf_efficientnet_lite{k}.in1k" for k in range(5)),
        *(f"tf_efficientnet_b{k}.in1k" for k in range(3)),
    ),
    ("_conv_stem.weight", (40, 3, 3, 3)): ("tf_efficientnet_b3.in1k",),
    ("_conv_stem.weight", (48, 3, 3, 3)): ("tf_efficientnet_b4.in1k",),
    ("conv_stem.weight", (32, 3, 3, 3)): (
        *(f"tf_efficientnet_lite{k}.in1k" for k in range(5)),
        "efficientnet_lite0.ra_in1k",
    ),
    ("conv_stem.weight", (16, 3, 3, 3)): (
        *("mobilenetv3_large_100.ra_in1k", "tf_mobilenetv3_large_100.in1k"),
        *("mobilenetv3_small_100.lamb_in1k", "tf_mobilenetv3_small_100.in1k"),
    ),
    ("features_0.weight", (64, 3, 3, 3)): tuple(
        f"vgg{depth}{norm}.tv_in1k" for depth in (11, 13, 16, 19) for norm in ("", "_bn")
    ),
}

#: layers between the last map and the classifier of an EfficientNet or MobileNetV3, which a numbered norm belongs to
HEAD = re.compile(r"(?:conv_head|bn2)\.")

DETECTRON2_NOTE = (
    "These are Detectron2's names. pri3d gives the network RGB with ImageNet's mean and standard deviation and has the "
    "stride in the 3 x 3 convolutions. Weights trained otherwise (Detectron2's defaults are BGR, a standard deviation "
    "of 1 and the stride in the 1 x 1 convolutions) load, but their features are wrong."
)


def import_weights(options: ImportOptions) -> Path:
    """Turn a checkpoint of another program into a weights file of pri3d, and say which tensors found their place.

    See :func:`pri3d.import_weights` for the options.
    """
    file = Path(options.file)
    out = Path(options.out)
    if out.suffix != ".safetensors":
        raise ConfigError(f"{out}: name a file that ends in .safetensors")
    file = find_file(file)
    if out.exists() and out.samefile(file):
        raise ConfigError(f"{out} is the file to read: choose another name")
    if read_provenance(file):
        raise ConfigError(f"{file} is a file of pri3d already: pri3d.load and --weights take it as it is")
    read, averages = read_nested(file)
    state = to_common_names(read)
    plain = {PREFIXES.sub("", key): value for key, value in from_detectron2(state).items()}
    if len(plain) < len(state):
        plain_names(state, str(file))  # says which two are meant
    plain = from_torchvision_convnext(plain)
    name = options.encoder or stated_encoder(file) or guess_encoder(plain, file)
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    record = {"version": __version__, "imported_from": file.name, "imported_hash": digest}
    with usable(str(out)):
        if any(WRAPPERS.sub("", key) == "decoder.conv0.weight" for key in state):
            parts = read_published(file)
            last = parts.unet["decoder.conv0.weight"]
            if last.ndim != 4 or not last.numel():  # looked up before anything of that size is made
                shape = tuple(last.shape)
                raise WeightsError(
                    f"{file}: decoder.conv0.weight has the shape {shape}, which is not a convolution: download it again"
                )
            unet = UNet(build_encoder(name), "paper", int(last.shape[0]))
            report = fill_unet(unet, parts, file)
            report = report._replace(unexpected=[*report.unexpected, *(f"3D network.{k}" for k in parts.net3d)])
            save_model(unet, out, {**record, "part": "all"})
        else:
            report, net = _fill(name, plain, file)
            save_state(net.state_dict(), out, {**record, "encoder": name, "part": "encoder"})
    lines = [f"{file}: {name}, {report}"]
    own = {re.split(r"[._]", PREFIXES.sub("", key))[0] for key in report.matched}
    counts = Counter(_kind(PREFIXES.sub("", key), own) for key in report.unexpected)
    if counts:
        listed = ", ".join(f"{module} ({count})" for module, count in counts.most_common(12))
        lines.append(f"not used: {listed}" + (f" and {len(counts) - 12} more" if len(counts) > 12 else ""))
    if averages:
        lines.append(f"not used: moving averages of the same network ({', '.join(averages)})")
    if any(DETECTRON2.fullmatch(key) for key in state):
        lines.append(DETECTRON2_NOTE)
    lines.append(f"{out}: written. In Python: pri3d.load({str(out)!r}); in pri3d: --weights {out}")
    sys.stdout.write("\n".join(lines) + "\n")
    return out


def _kind(key: str, own: Set[str]) -> str:
    """A tensor that is not taken, as it is counted: by its module, or within the network by its name in any block."""
    if "." not in key and key.startswith("ema_"):
        return "ema_*"  # OpenMMLab's moving averages
    inside = re.split(r"[._]", key)[0] in own
    return re.sub(r"\.\d+\.", ".N.", key) if inside else key.partition(".")[0]


def stated_encoder(file: Path) -> str | None:
    """Name of the network in the ``config.json`` beside a file that timm or smp saved; None where there is none."""
    config = file.with_name("config.json")
    if file.name != HUB_FILE or not config.is_file():
        return None
    try:
        stated = parse_json(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{config} is damaged ({first_line(error)}): copy or download it again") from error
    names = [stated.get(key) for key in ("architecture", "encoder_name")] if isinstance(stated, dict) else []
    return next((name.removeprefix("tu-") for name in names if isinstance(name, str)), None)


def guess_encoder(state: Mapping[str, Tensor], file: Path) -> str:
    """Name the encoder that ``state``, without wrappers, is of: the largest that it fills.

    Raises ConfigError where none of the common ones is filled, or where several are that differ in what their images
    are normalised with, which no file tells.
    """
    plain = plain_names(state, "the file")
    # Of query, key and value, not zero.
    biased = any(key.endswith("qkv.bias") and (value.is_meta or bool(value.any())) for key, value in state.items())
    nets = []
    for (marker, shape), names in FAMILIES.items():
        for name in names if marker in plain and state[plain[marker]].shape == shape else ():
            if BIASED in name and not biased:
                continue  # the network without them is the same
            with suppress(ConfigError), torch.device("meta"):  # timm is not there, or older than the network
                nets.append(build_encoder(name))
    whole = [net for net in nets if _is_whole(net.state_dict(), state)]
    # Where it fills none as it is: under timm's names.
    whole = whole or [net for net in nets if _is_whole(net.state_dict(), _renamed(net, state))]
    sizes = [sum(v.numel() for v in net.state_dict().values()) for net in whole]
    fits = [net for net, size in zip(whole, sizes, strict=True) if size == max(sizes)]
    if not fits:
        known = ", ".join(dict.fromkeys(name for names in FAMILIES.values() for name in names))
        if naming := name_of_naming(state):
            raise ConfigError(
                f"{file}: its names are {naming}, which pri3d does not read. Where timm has the same network, "
                "pretrained weights come by --weights timm:NAME; others under timm's names"
            )
        raise ConfigError(
            f"{file} cannot be identified by its tensors (it has {', '.join(list(state)[:3])}, ...). If `pri3d "
            f"models` lists its network, give it with --encoder. Known are {known}"
        )
    if len({fit.statistics for fit in fits}) > 1:
        listed = "; ".join(f"{fit.name} (mean {fit.statistics[0]}, deviation {fit.statistics[1]})" for fit in fits)
        raise ConfigError(
            f"{file} could be of networks that take differently normalised images, and does not state which: pass "
            f"--encoder with one of {listed}"
        )
    return fits[0].name


def _renamed(net: Encoder, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """``state`` of a network's original release under the names that timm gave it; else as it is."""
    if net.name in registry.names("encoders", registry.ENCODERS):
        return state
    if "_conv_stem.weight" in state:
        return from_efficientnet(state, net.state_dict())
    from pri3d.networks.timm_encoders import from_release  # noqa: PLC0415 (ResNets do without timm)

    return from_release(net.name, state) or state


def _is_whole(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> bool:
    """Whether every tensor of a network is there in its shape, and no other of the same modules: a deeper one's."""
    given = {plain: state[key].shape for plain, key in plain_names(state, "the file").items()}
    wanted = {plain: own[key].shape for plain, key in plain_names(own, "the network").items()}
    counters = {key for key in given.keys() | wanted.keys() if key.endswith("num_batches_tracked")}
    modules = {_module(key) for key in wanted}
    others = {key for key in given.keys() - wanted.keys() - counters if not HEAD.match(key)}
    more = any(_module(key) in modules for key in others)
    return not more and all(given.get(key) == shape for key, shape in wanted.items() if key not in counters)


def _module(plain: str) -> str:
    """First part of a name without its numbers: of ``layer1.0.conv1.weight`` and ``layer4.2.bn1.bias`` the same."""
    return re.split(r"[._]?\d|\.", plain, maxsplit=1)[0]


def _fill(name: str, state: Mapping[str, Tensor], file: Path) -> tuple[WeightsReport, Encoder]:
    """Build an encoder and load ``state`` into it completely, under its own names or those of the network's release."""
    with torch.device("meta"):
        net = build_encoder(name)  # of no memory: a folder's config.json may name any size
    taken = state if _is_whole(net.state_dict(), state) else _renamed(net, state)
    try:
        check_fit(net, taken, str(file))
        net = build_encoder(name)
        report = load_weights(net, taken, minimum=1.0)
    except WeightsError as error:
        raise WeightsError(f"{file} is no {net.name}: {error}") from error
    if taken is state:
        return report, net
    lost = left_out(state, taken, lambda part: _renamed(net, part))
    return report._replace(unexpected=[*report.unexpected, *lost]), net


def left_out(
    state: Mapping[str, Tensor],
    renamed: Mapping[str, Tensor],
    rule: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
) -> list[str]:
    """Return the tensors that a rule of renaming has dropped: none of its results is of their memory, or needs them."""
    memory = {value.untyped_storage().data_ptr() for value in renamed.values()}
    doubtful = [key for key, value in state.items() if value.untyped_storage().data_ptr() not in memory]
    return [key for key in doubtful if rule({k: v for k, v in state.items() if k != key}).keys() == renamed.keys()]
