"""``pri3d models``: its options."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pri3d.api.options import Options, implementation, option, verb

if TYPE_CHECKING:
    from pri3d.networks.catalog import Facts


class ModelsOptions(Options):
    """Options of :func:`models`."""

    encoder: str | None = option(
        "show one encoder, by any name that --encoder of other commands takes; default: built-in ones, those of "
        "installed packages and an example of each family of timm",
        default=None,
    )


@verb(ModelsOptions, "pri3d models --encoder vit_small_patch16_dinov3")
def models(options: ModelsOptions) -> list[Facts]:
    """List the available encoders: channels and strides of their maps, parameters, and measured results.

    The list states whose ImageNet weights are available offline: in an installed package or a cache. Nothing is
    downloaded, and no memory is taken for weights.

    Returns what is shown. Raises ConfigError for an unknown name; the message has the closest ones.
    """
    return implementation("pri3d.networks.catalog:list_models")(options)
