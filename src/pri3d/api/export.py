"""``pri3d export``: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pri3d.api.options import AnyPath, Options, implementation, option, verb
from pri3d.api.results import Output


class ExportOptions(Options):
    """Options of :func:`export`."""

    run: AnyPath = option("folder of a pre-training or fine-tuning run, or a weights file of pri3d", kw_only=False)
    to: str = option(
        "format: torchvision (ResNet, ConvNeXt), timm, smp (ResNets, timm networks with maps of stride 4 to 32), "
        "detectron2 and mmseg (ResNets, with a configuration beside the weights), safetensors (pri3d's names, for "
        "pri3d.load), onnx and torchscript (any image size, including normalisation), hf (a folder for the hub), "
        "or one of an installed package",
        default="torchvision",
    )
    out: AnyPath | None = option(
        "file, or folder for hf; default: encoder_NAME or model_NAME in the run's folder", default=None
    )
    part: Literal["encoder", "all"] = option(
        "encoder, or all for the whole U-Net (safetensors, onnx, torchscript, hf)", default="encoder"
    )
    mix: float = option(
        "interpolate between the initial weights (0) and those of the run (1) of a pre-training",
        default=1.0,
        least=0,
        most=1,
    )


@verb(ExportOptions, "pri3d export runs/kitchen --to torchvision --out kitchen_r18.safetensors")
def export(options: ExportOptions) -> Output:
    """Export a run's weights to other libraries, check the reloaded file, and print how to load it.

    The features of the reloaded file are compared with those of the run's network.
    A model card is written beside it, NAME.md (in a folder README.md). Adapters are merged. A fine-tuned run gives
    its backbone: the head stays with `pri3d predict`.

    Returns the file or folder. Raises ConfigError for a combination that does not exist, naming those that do, where a
    package is missing, or for an ``out`` that cannot be written or where something else than an earlier export would be
    replaced; WeightsError for a damaged run, or where a feature of the reloaded file differs by more than the format's
    bound, 1e-5 (onnx, torchscript: 1e-4) of the largest feature or of 1; then nothing is left at ``out``.
    """
    out = None if options.out is None else Path(options.out)
    work = implementation("pri3d.exporting.export:export")
    return Output(work(Path(options.run), options.to, out, options.part, options.mix))
