"""``pri3d.load``, and lists of presets and encoders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from pri3d import registry
from pri3d.api.finetune import presets_of_task
from pri3d.api.options import AnyPath, implementation
from pri3d.api.presets import shipped
from pri3d.api.pretrain import PRESETS

if TYPE_CHECKING:
    from pri3d.networks.load import FeatureNet


class Preset(NamedTuple):
    """A shipped preset."""

    name: str
    verb: str  #: pretrain, or finetune and its task
    about: str  #: the comment at its head


def load(
    source: AnyPath, part: Literal["encoder", "all"] | None = None, level: int | Literal["fused"] | None = None
) -> FeatureNet:
    """Load a trained backbone as a plain ``nn.Module``: on the CPU, in eval mode.

    ``source`` is the folder of a pre-training or fine-tuning run, one of its files, a file or folder of ``pri3d export
    --to safetensors`` or ``hf`` or of ``pri3d import``, or a name on the hub, ``user/name`` or ``user/name@revision``
    (needs huggingface_hub; cached after the first time). ``part`` "encoder" takes the encoder, at its own strides
    whatever network it was fine-tuned in; "all" the whole U-Net; None what an export was made of, of everything else
    the encoder. ``level`` makes an encoder give one map, for tools that take one: a number, 0 the finest and -1 the
    coarsest, or "fused": the maps of stride 8 or more, enlarged to the finest of them and concatenated.

    Returns a module whose call takes RGB 0..1 (B, 3, H, W) and gives maps, finest first; its ``transform`` makes such a
    batch of an image file, a PIL image or an array. Raises WeightsError where there is no such file or name, or it does
    not hold the part, is damaged or unsafe; ConfigError for another ``part`` or ``level``.
    """
    return implementation("pri3d.networks.load:load")(source, part, level)


def presets(verb: str | None = None) -> list[Preset]:
    """Every shipped preset of ``pretrain`` and of the tasks of ``finetune``, or of one of them alone.

    ``verb`` is "pretrain" or the name of a task. Raises ConfigError for another name.
    """
    folders = {"pretrain": lambda: PRESETS}
    for task in registry.names("tasks", registry.TASKS):
        folders[task] = lambda task=task: presets_of_task(task)  # type: ignore[misc]
    chosen = list(folders) if verb is None else [verb]
    rows = []
    for name in chosen:
        folder = registry.choice("verb or task", folders, name)()
        for preset, path in shipped(folder).items():
            lines = path.read_text(encoding="utf-8").splitlines()
            about = " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))
            rows.append(Preset(preset, "pretrain" if name == "pretrain" else f"finetune {name}", about))
    return rows


def encoders(at_hand: bool = False) -> list[str]:
    """Names of the encoders that are built in or come with installed packages; any name of timm can be built, too.

    ``at_hand`` gives those of them and of timm's examples, as :func:`pri3d.models` shows them, whose ImageNet weights
    ``--weights imagenet`` finds without a network: in an installed package or a cache.
    """
    if at_hand:
        return implementation("pri3d.networks.catalog:list_startable")()
    return registry.names("encoders", registry.ENCODERS)
