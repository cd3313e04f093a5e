"""State dicts out of weights files of any program; nothing in a file is executed."""

from __future__ import annotations

import pickle
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pri3d.errors import WeightsError, first_line

MODEL_FILE = "weights.safetensors"
HUB_FILE = "model.safetensors"  #: what a model's folder on a hub has in its place
INITIAL_FILE = "initial.safetensors"  #: the network before a run's training, never what a folder stands for
#: of the header of our files: CRC-32 of the header with zeros in its place, and of the tensors
CHECKSUMS = "pri3d_crc32"
_NO_CHECKSUMS = "00000000-00000000"
#: dictionaries that checkpoints are nested in, outermost first; of DINO's two the teacher is the one to use. Moving
#: averages last: where a file has both, the network itself is taken
AVERAGES = ("model_ema", "state_dict_ema", "ema_state_dict", "ema")
NESTS = ("state_dict", "model", "model_state_dict", "network", "net", "teacher", *AVERAGES)
#: what re-saves the tensors of a file that needs code, for who trusts it; names of one folder
CLEAN = (
    "python -c \"import torch; d = torch.load(PATH, weights_only=False); d = getattr(d, 'state_dict', lambda: d)(); "
    f"d = next((d[k] for k in {NESTS[:6]} if k in d), d); "
    "torch.save({k: v for k, v in d.items() if torch.is_tensor(v)}, 'clean.pth')\""
)
CLEAN_PICKLE = (
    "import pickle, torch; d = pickle.load(open(PATH, 'rb')); "
    "torch.save({k: torch.as_tensor(v) for k, v in d.get('model', d).items()}, 'clean.pth')"
)
#: endings and first bytes of weights that are no torch file -> whose they are
OTHER_PROGRAMS = {
    **dict.fromkeys((".h5", ".hdf5", ".keras"), "Keras"),
    ".onnx": "ONNX",
    ".tflite": "TensorFlow Lite",
    ".pb": "TensorFlow",
    ".msgpack": "Flax",
    ".gguf": "llama.cpp",
    ".npz": "NumPy",
    ".npy": "NumPy",
    ".mat": "MATLAB",
    ".caffemodel": "Caffe",
}
OTHER_STARTS = {b"\x89HDF\r\n\x1a\n": "Keras (HDF5)", b"GGUF": "llama.cpp"}
#: first bytes of what a download leaves in the place of weights -> what it is, and what to do
NO_WEIGHTS = {
    b"version https": "a pointer of git-lfs: `git lfs pull` in its folder fetches the weights themselves",
    **dict.fromkeys(
        (b"<!doctype", b"<html", b"<?xml", b"<head"), "a web page: its link leads to a page, download the file itself"
    ),
    **dict.fromkeys((b"{", b"["), "JSON text: see what it says, and download the file itself"),
    **dict.fromkeys((b"\x89png", b"\xff\xd8\xff", b"gif8"), "an image: give a weights file"),
    **dict.fromkeys((b"\x1f\x8b", b"bzh", b"\xfd7zxz", b"7z\xbc\xaf", b"rar!"), "a packed file: unpack it first"),
    b"%pdf": "a PDF: give a weights file",
}
#: classes of settings and counters that training scripts put beside the tensors; never called, an empty stand-in is
HARMLESS = (
    "argparse.Namespace",
    *(f"pathlib.{kind}" for kind in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
    *(f"pathlib._local.{kind}" for kind in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
    *("numpy.dtype", "numpy.ndarray", "collections.defaultdict", "typing.Any"),
    *(f"numpy.{core}.multiarray.{kind}" for core in ("core", "_core") for kind in ("scalar", "_reconstruct")),
    *("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig", "omegaconf.nodes.AnyNode"),
    *("omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata"),
    *("mmengine.logging.history_buffer.HistoryBuffer", "mmengine.config.config.ConfigDict"),
    *("mmcv.utils.config.ConfigDict", "addict.addict.Dict", "easydict.EasyDict", "yacs.config.CfgNode"),
    *("pytorch_lightning.utilities.parsing.AttributeDict", "lightning.fabric.utilities.data.AttributeDict"),
    *("lightning_fabric.utilities.data.AttributeDict", "detectron2.config.config.CfgNode"),
)


class _StandIn(dict[Any, Any]):
    """In the place of an object of another program: it takes what such an object is made of, and does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, _: Any) -> None:
        """Nothing is kept."""

    __hash__ = object.__hash__  # type: ignore[assignment]


def is_safetensors(path: Path) -> bool:
    """Whether the first bytes of a file are those of safetensors: the length of a header, which is JSON."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size


def write_safetensors(tensors: dict[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a file whose header holds checksums of itself and of the tensors; to other readers it is one more entry.

    Raises what the library raises.
    """
    save_file(tensors, path, metadata={**metadata, CHECKSUMS: _NO_CHECKSUMS})
    header, stated = _checksums(path, whole=True)
    place = header.index(f'"{CHECKSUMS}":"'.encode()) + len(CHECKSUMS) + 4
    with path.open("r+b") as file:
        file.seek(place)
        file.write(stated.encode())


def check_checksums(path: Path, metadata: Mapping[str, str] | None, whole: bool) -> None:
    """Compare a safetensors file with the checksums in its metadata: of its header, or ``whole``.

    Other programs and earlier versions write none. Raises ValueError, which says what is wrong.
    """
    stated = (metadata or {}).get(CHECKSUMS)
    if stated is None:
        return
    found = _checksums(path, whole)[1]
    if stated[:8] != found[:8]:
        raise ValueError("the checksum of its header is wrong")
    if whole and stated[9:] != found[9:]:
        raise ValueError("the checksum of its tensors is wrong")


def _checksums(path: Path, whole: bool) -> tuple[bytes, str]:
    """The header of a safetensors file, and its checksums as they must be; that of the tensors if ``whole``."""
    with path.open("rb") as file:
        header = file.read(8)
        header += file.read(min(int.from_bytes(header, "little"), path.stat().st_size))
        plain = re.sub(
            rb'("%s":")[^"]*(?=")' % CHECKSUMS.encode(), rb"\g<1>%s" % _NO_CHECKSUMS.encode(), header, count=1
        )
        data = 0
        while whole and (block := file.read(1 << 22)):
            data = zlib.crc32(block, data)
    return header, f"{zlib.crc32(plain):08x}-{data:08x}"


def read_state(path: Path) -> dict[str, Tensor]:
    """State dict of a .safetensors or torch file, or of a run's or export's folder; nothing in the file is executed.

    Checksums are verified where the file has some. The tensors lie in the file until they are used: it is mapped (but
    for torch files from before 1.6).
    Raises WeightsError for a missing, damaged or unsafe file, or one without tensors.
    """
    return read_nested(path)[0]


def read_nested(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """As :func:`read_state`, and the names of the averages that lie beside what was taken."""
    path = find_file(path)
    refuse_no_weights(path)
    if is_safetensors(path) or path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                check_checksums(path, file.metadata(), whole=True)
                return {key: file.get_tensor(key) for key in file.keys()}, []  # noqa: SIM118 (no dict)
        except Exception as error:  # whatever bytes may make the library raise
            raise WeightsError(f"{path} is damaged ({first_line(error)}): copy or download it again") from error
    content = _read_torch(path)
    averages: list[str] = []
    for _ in NESTS:  # so often at most: a hostile one contains itself
        if isinstance(content, Mapping):
            found = [key for key in NESTS if isinstance(content.get(key), Mapping)]
            found = [key for key in found if not isinstance(content[key], _StandIn)]
            averages += [key for key in found[1:] if key in AVERAGES]
            content = content[found[0]] if found else content
    state: dict[str, Tensor] = {}
    for key, value in content.items() if isinstance(content, Mapping) else ():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            continue
        # All its numbers must be in memory: a file may state one a thousand million times.
        dense = value.layout == torch.strided and not value.is_meta and not value.is_quantized
        if dense and value.numel() * value.element_size() <= value.untyped_storage().nbytes():
            state[key] = value
    if not state:
        raise WeightsError(f"{path} holds no tensors by name (looked in {', '.join(NESTS)}): give a state dict")
    return state, averages


def refuse_no_weights(path: Path) -> None:
    """Say what a file is that is told by its first bytes to be no weights. Raises WeightsError."""
    if is_safetensors(path):
        return
    with path.open("rb") as file:
        start = file.read(64).lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    if path.stat().st_size == 0:
        raise WeightsError(f"{path} is damaged (it is empty): download it again")
    what = next((what for head, what in NO_WEIGHTS.items() if start.startswith(head)), None)
    if path.suffix == ".safetensors" and zipfile.is_zipfile(path):
        what = "a torch file, not safetensors: give it a name that ends in .pth"
    if what is not None:
        raise WeightsError(f"{path} is {what}")


def _read_torch(path: Path) -> Any:
    """Content of a torch file, made of tensors and plain values alone. Raises WeightsError for anything else."""
    with path.open("rb") as file:
        start = file.read(8)
    other = OTHER_PROGRAMS.get(path.suffix.lower()) or next(
        (n for head, n in OTHER_STARTS.items() if start.startswith(head)), ""
    )
    if other:
        raise WeightsError(
            f"{path} is a file of {other}: pri3d reads safetensors and torch files. Write its weights as a state dict "
            "with the program that made it, under the names of torchvision or timm"
        )
    archive = is_sound_archive(path)
    if not archive and path.suffix in (".pkl", ".pickle"):
        raise WeightsError(
            f"{path} is a pickle, which can hold any program, and pri3d runs no code out of files. If you trust it, "
            f'write its tensors to a file of tensors alone: python -c "{CLEAN_PICKLE}"'
        )
    try:
        with torch.serialization.safe_globals([(_StandIn, name) for name in HARMLESS]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        raise WeightsError(
            f"{path} is not a plain file of tensors{f' but asks for {wanted[1]}' if wanted else ''}, and pri3d runs no "
            f"code out of files. If it is damaged, download it again; if you trust it, re-save its tensors alone: "
            f"{CLEAN}"
        ) from error
    except Exception as error:  # whatever bytes may make torch raise
        raise WeightsError(f"{path} is damaged or no torch file ({first_line(error)}): download it again") from error


def is_sound_archive(path: Path) -> bool:
    """Whether a file is a zip archive, as torch's are since 1.6; if so, its checksums, which torch leaves out, hold.

    Raises WeightsError where they do not, and for one that would unpack to more than its size: torch compresses
    nothing.
    """
    try:
        if not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            packed = [member.filename for member in members if member.compress_type != zipfile.ZIP_STORED]
            if packed:
                what = f"{packed[0]} is compressed"
            elif sum(member.file_size for member in members) > path.stat().st_size:
                what = "its parts are larger than the whole"
            elif wrong := archive.testzip():
                what = f"the checksum of {wrong} is wrong"
            else:
                return True
    except (zipfile.BadZipFile, ValueError, OSError, RuntimeError, EOFError) as error:
        what = first_line(error)
    raise WeightsError(f"{path} is damaged or no torch file ({what}): download it again")


def find_file(path: Path) -> Path:
    """The weights file that a path stands for. Raises WeightsError where there is none, or no telling which."""
    if not path.is_dir():
        if path.is_file():
            return path
        raise WeightsError(f"no weights at {path}: give a weights file or the folder of a finished run")
    for name in (MODEL_FILE, HUB_FILE):
        if (path / name).is_file():
            return path / name
    others = [file for file in sorted(path.glob("*.safetensors")) if file.name != INITIAL_FILE]
    if len(others) == 1 and not (path / INITIAL_FILE).exists():
        return others[0]
    found = f" (there are {', '.join(file.name for file in others)}: name one)" if others else ""
    raise WeightsError(f"no weights at {path / MODEL_FILE}{found}: give a weights file or the folder of a finished run")
