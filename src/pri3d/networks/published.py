"""The published Pri3D checkpoints -> our networks: the 2D U-Net, the 3D network and the heads of its objectives.

Such a file is a torch dictionary whose ``model`` holds ``backbone.encoder.*`` and ``backbone.decoder.*`` (our own
names), ``backbone3d.*`` and the linear layers ``w2d``, ``w3d`` and ``headnet``. The 3D network is MinkowskiEngine's
MinkUNet: a kernel is (k^3, in, out) with offsets running x fastest, from -k//2 for odd k and from 0 for even k, a
1 x 1 one is (in, out), and a norm's tensors lie under ``.bn.``. Ours run z fastest over the same offsets.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from pri3d.errors import WeightsError
from pri3d.networks.resunet3d import ResUNet3d
from pri3d.networks.state_files import read_state
from pri3d.networks.unet import UNet
from pri3d.networks.weights import WeightsReport, load_weights

#: what may stand before a name; ``backbone`` is the 2D network's place in the published model
WRAPPERS = re.compile(r"^(?:(?:module|model|_forward_module|unet|backbone)\.)+")

#: the 3D network's place in the published model, and other names it may have there
PLACES_3D = re.compile(
    r"^(?:(?:module|model|_forward_module)\.)*(?:backbone3d|backbone_3d|model3d|net3d)\.(?:module\.)?"
)

#: the start of a MinkUNet's own names, for files that hold the 3D network alone; no ResNet has them
MINKUNET = re.compile(r"^(?:conv(?:tr)?\d+p\d+s\d+|bn(?:tr)?\d+\.bn|block\d+|final)\.")

LEVELS = 4  #: times the 3D network goes down; block1 to block4 go down, block5 to block8 come back up

#: a MinkUNet's module -> ours; ``down`` is the stage of the name's number, ``up`` the one after it: convtr4 and bntr4
#: come before block5
MODULES = {
    re.compile(pattern + r"\.(?P<leaf>kernel|bias|bn\.\w+)"): ours
    for pattern, ours in {
        r"conv0p1s1": "stem",
        r"bn0": "stem_norm",
        r"conv(?P<n>[1-4])p\d+s2": "{down}.move",
        r"bn(?P<n>[1-4])": "{down}.norm",
        r"convtr(?P<n>[4-7])p\d+s2": "{up}.move",
        r"bntr(?P<n>[4-7])": "{up}.norm",
        r"block(?P<n>[1-8])\.(?P<block>\d+)\.(?P<part>(?:conv|norm)[12])": "{down}.blocks.{block}.{part}",
        r"block(?P<n>[1-8])\.(?P<block>\d+)\.downsample\.(?P<part>[01])": "{down}.blocks.{block}.shortcut.{part}",
        r"final": "head",
    }.items()
}


class Published(NamedTuple):
    """What a published checkpoint holds, under the names of our modules; a part it lacks is empty."""

    unet: dict[str, Tensor]  #: ``encoder.*`` and ``decoder.*``, of :class:`pri3d.networks.unet.UNet`
    net3d: dict[str, Tensor]  #: state dict of :class:`pri3d.networks.resunet3d.ResUNet3d`
    heads: dict[str, Tensor]  #: everything else under its own name: ``w2d.weight``, ``headnet.bias``, ...


def read_published(path: Path) -> Published:
    """Read a published checkpoint (a torch file; nothing in it is executed) and rename its tensors to ours.

    Raises WeightsError for a file that cannot be read, that holds neither a U-Net nor a 3D network, or whose 3D
    tensors have names or shapes that a MinkUNet has not.
    """
    unet: dict[str, Tensor] = {}
    net3d: dict[str, Tensor] = {}
    heads: dict[str, Tensor] = {}
    for key, value in read_state(path).items():
        name = PLACES_3D.sub("", key)
        plain = WRAPPERS.sub("", key)
        if name != key or MINKUNET.match(plain):
            ours, tensor = _convert(plain if name == key else name, value, path)
            net3d[ours] = tensor
        elif plain.startswith(("encoder.", "decoder.")):
            unet[plain] = value
        else:
            heads[plain] = value
    if not unet and not net3d:
        raise WeightsError(
            f"{path} is no Pri3D checkpoint: it holds neither encoder.* and decoder.* nor a 3D network "
            f"(it has {', '.join(list(heads)[:3])}, ...). Encoder weights of other programs go to --weights"
        )
    return Published(unet, net3d, heads)


def load_published(unet: UNet, path: Path, net3d: ResUNet3d | None = None) -> WeightsReport:
    """Fill ``unet``, and ``net3d`` where it is given, from a published checkpoint; both completely or not at all.

    The report is the U-Net's, its unexpected tensors those of the heads. Build the networks as the file's were:
    ``build_unet("resnet50", "paper")`` with 128 channels or ``build_unet("resnet18", "paper")`` with 32, and
    ``build_resunet3d("34C", in_channels=3)``. Raises WeightsError, with both unchanged, where a part is missing or
    does not fit.
    """
    parts = read_published(path)
    if not parts.unet:
        raise WeightsError(f"{path} holds a 3D network alone: it has no U-Net to load")
    if net3d is not None:
        # Refuse a 3D network that the file does not fill, before anything is changed.
        if not parts.net3d:
            raise WeightsError(f"{path} holds no 3D network (a View-only checkpoint): leave net3d out")
        own = {k: v.shape for k, v in net3d.state_dict().items() if not k.endswith("num_batches_tracked")}
        given = {k: v.shape for k, v in parts.net3d.items() if not k.endswith("num_batches_tracked")}
        wrong = sorted(k for k in own.keys() | given.keys() if own.get(k) != given.get(k))
        if wrong:
            stem, head = given.get("stem.weight"), given.get("head.weight")
            hint = f" with in_channels={stem[1]}, out_channels={head[0]}" if stem and head else ""
            raise WeightsError(f"{path}: the 3D network differs in {', '.join(wrong[:5])}. Build the file's size{hint}")
    report = fill_unet(unet, parts, path)
    if net3d is not None:
        load_weights(net3d, parts.net3d, minimum=1.0)
    return report


def fill_unet(unet: UNet, parts: Published, path: Path) -> WeightsReport:
    """Fill ``unet`` completely from the parts of the checkpoint at ``path``; the heads are reported as unexpected.

    Raises WeightsError, with the network unchanged, where it does not fit.
    """
    try:
        report = load_weights(unet, parts.unet, minimum=1.0)
    except WeightsError as error:
        raise WeightsError(f"{path} is no U-Net with encoder {unet.encoder.name}: {error}") from error
    return report._replace(unexpected=[*report.unexpected, *parts.heads])


def _convert(name: str, value: Tensor, path: Path) -> tuple[str, Tensor]:
    """One tensor of a MinkUNet -> its name and layout in ours."""
    match, template = next(((m, ours) for rule, ours in MODULES.items() if (m := rule.fullmatch(name))), (None, ""))
    if match is None:
        raise WeightsError(f"{path}: {name!r} is no tensor of a MinkUNet: is it another 3D network?")
    parts = match.groupdict()
    number, leaf = int(parts.get("n", 0)), parts.pop("leaf")
    module = template.format(down=_stage(number), up=_stage(number + 1), **parts)
    if leaf == "kernel":
        if "shortcut" in module or module == "head":
            # (in, out) or (1, in, out) -> weight (out, in) of a linear layer.
            if value.ndim not in (2, 3) or value.shape[:-2].numel() != 1:
                raise _other_shape(value, "(in, out)", path)
            return f"{module}.weight", value.reshape(value.shape[-2:]).mT.contiguous()
        # (k^3, in, out) with offsets x fastest -> the same with z fastest.
        k = round(value.shape[0] ** (1 / 3)) if value.ndim == 3 else 0
        if k == 0 or k**3 != value.shape[0]:
            raise _other_shape(value, "(k^3, in, out)", path)
        cube = value.reshape(k, k, k, *value.shape[1:])
        return f"{module}.weight", cube.transpose(0, 2).reshape(value.shape).contiguous()
    return f"{module}.{leaf.removeprefix('bn.')}", value.reshape(-1) if module == "head" else value


def _stage(number: int) -> str:
    """Our stage of block ``number``, counted from 1 over both halves."""
    return f"encoder.{number - 1}" if number <= LEVELS else f"decoder.{number - 1 - LEVELS}"


def _other_shape(kernel: Tensor, expected: str, path: Path) -> WeightsError:
    return WeightsError(f"{path}: a kernel of shape {tuple(kernel.shape)}; {expected} is expected")
