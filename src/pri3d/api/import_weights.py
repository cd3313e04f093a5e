"""``pri3d import``: its options."""

from __future__ import annotations

from pri3d.api.options import AnyPath, Options, implementation, option, verb
from pri3d.api.results import Output


class ImportOptions(Options):
    """Options of :func:`import_weights`."""

    file: AnyPath = option(
        "safetensors or torch file of torchvision, timm, MoCo, SimCLR, SwAV, DINO, MAE or Detectron2, or a "
        "published Pri3D checkpoint (its U-Net)",
        kw_only=False,
    )
    out: AnyPath = option(".safetensors file to write, for pri3d.load and --weights", kw_only=False)
    encoder: str | None = option(
        "name of the network, if it cannot be identified from the file's tensors", default=None, kw_only=False
    )


@verb(ImportOptions, "pri3d import moco_v2_800ep_pretrain.pth.tar moco.safetensors", name="import")
def import_weights(options: ImportOptions) -> Output:
    """Convert a checkpoint of another program to a weights file of pri3d, and list which tensors were loaded.

    Nothing in the file is executed. The written file's header names the file it came from, and that one's SHA-256.

    Returns the written file. Raises ConfigError where the network has to be named (the message lists those that fit) or
    ``out`` cannot be written; WeightsError where the file cannot be read safely, or does not fill the network: nothing
    is written then.
    """
    return Output(implementation("pri3d.networks.importing:import_weights")(options))
