"""Other libraries' sparse convolutions inside our own 3D network, to time all of them on the same voxels.

    pip install spconv-triton   (GPU only; spconv itself has the same interface)      pip install ocnn

Everything but the convolutions stays as it is: norms, shortcuts, concatenations. A library brings a geometry, which
:meth:`pri3d.networks.resunet3d.ResUNet3d.features` is called with, and a layer for each of ours. ocnn has no 5^3
kernel: build the network with ``stem_kernel=3`` to compare. Rows lie in the library's own order.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from pri3d.networks.resunet3d import ResUNet3d
from pri3d.networks.sparse import Down, SparseConv, SubmConv

LIBRARIES = ("spconv-triton", "ocnn")
_MODULES = {"spconv-triton": "spconv_triton.pytorch", "spconv": "spconv.pytorch", "ocnn": "ocnn"}


def available(library: str) -> bool:
    """Whether a library is installed."""
    return importlib.util.find_spec(_MODULES[library].partition(".")[0]) is not None


def swap_convolutions(net: ResUNet3d, library: str) -> Callable[[Tensor], Any]:
    """Put a library's layers in the place of ours, in place; return what makes its geometry of coords (N, 4)."""
    lib = import_module(_MODULES[library])
    wrapper = OcnnLayer if library == "ocnn" else SpconvLayer
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, SparseConv):
                setattr(parent, name, wrapper(lib, child).to(child.weight.device))
    depth = net.depth
    return lambda coords: OcnnGeometry(lib, coords, depth) if library == "ocnn" else SpconvGeometry(lib, coords)


def _from_zero(coords: Tensor, multiple: int = 1) -> Tensor:
    """Coords (N, 4) with every cell >= 0, all moved by whole multiples."""
    low = torch.div(coords[:, 1:].amin(dim=0), multiple, rounding_mode="floor") * multiple
    return torch.cat((coords[:, :1], coords[:, 1:] - low), dim=1)


class _Rows:
    """Rows in the order they come."""

    def __init__(self, coords: Tensor) -> None:
        self.order = self.inverse = torch.arange(len(coords), device=coords.device)


class SpconvGeometry(_Rows):
    """The sparse tensors of every level; their index maps are made by the layers that need them first."""

    def __init__(self, lib: Any, coords: Tensor) -> None:
        super().__init__(coords)
        cells = _from_zero(coords, 16)
        shape = [-(-(int(n) + 1) // 16) * 16 for n in cells[:, 1:].amax(dim=0)]
        empty = torch.empty(len(cells), 1, device=cells.device)
        batch = int(cells[:, 0].max()) + 1
        self.tensors = {0: lib.SparseConvTensor(empty, cells.int().contiguous(), shape, batch)}


class SpconvLayer(nn.Module):
    """One convolution by spconv's interface."""

    def __init__(self, lib: Any, ours: SparseConv) -> None:
        super().__init__()
        _, inputs, outputs = ours.weight.shape
        self.kernel, self.kind = ours.kernel, type(ours)
        if self.kind is SubmConv:
            self.conv = lib.SubMConv3d(inputs, outputs, self.kernel, bias=False, indice_key="set at each call")
        elif self.kind is Down:
            self.conv = lib.SparseConv3d(inputs, outputs, 2, 2, bias=False, indice_key="set at each call")
        else:
            self.conv = lib.SparseInverseConv3d(inputs, outputs, 2, bias=False, indice_key="set at each call")

    def forward(self, x: Tensor, geometry: SpconvGeometry, level: int) -> Tensor:
        """Features of ``level`` -> features of the same, the coarser or the finer level."""
        same, down = self.kind is SubmConv, self.kind is Down
        self.conv.indice_key = f"same-{level}-{self.kernel}" if same else f"down-{level if down else level - 1}"
        result = self.conv(geometry.tensors[level].replace_feature(x))
        if down:
            geometry.tensors.setdefault(level + 1, result)
        features: Tensor = result.features
        return features


class OcnnGeometry(_Rows):
    """An octree whose leaves are the voxels."""

    def __init__(self, lib: Any, coords: Tensor, levels: int) -> None:
        super().__init__(coords)
        cells = _from_zero(coords, 2**levels)
        self.depth = max(math.ceil(math.log2(int(cells[:, 1:].max()) + 1)), levels + 2)
        points = (cells[:, 1:].float() + 0.5) / 2 ** (self.depth - 1) - 1
        batch = int(cells[:, 0].max()) + 1
        cloud = lib.octree.Points(points, batch_id=cells[:, :1], batch_size=batch)
        self.octree = lib.octree.Octree(self.depth, min(self.depth - levels, 2), batch, coords.device)
        self.octree.build_octree(cloud)
        self.octree.construct_all_neigh()


class OcnnLayer(nn.Module):
    """One convolution by ocnn, on occupied nodes alone."""

    def __init__(self, lib: Any, ours: SparseConv) -> None:
        super().__init__()
        _, inputs, outputs = ours.weight.shape
        if isinstance(ours, SubmConv):
            self.conv = lib.nn.OctreeConv(inputs, outputs, [ours.kernel], nempty=True)
        else:
            kind = lib.nn.OctreeConv if isinstance(ours, Down) else lib.nn.OctreeDeconv
            self.conv = kind(inputs, outputs, [2], stride=2, nempty=True)

    def forward(self, x: Tensor, geometry: OcnnGeometry, level: int) -> Tensor:
        """Features of ``level`` -> features of the same, the coarser or the finer level."""
        features: Tensor = self.conv(x, geometry.octree, geometry.depth - level)
        return features


def allow_tf32(library: str, allowed: bool) -> None:
    """Tell a library that has a switch of its own."""
    if library == "spconv-triton":
        import_module("spconv_triton").constants.SPCONV_ALLOW_TF32 = allowed
