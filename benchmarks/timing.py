"""Clocks for benchmarks on any device: spans on the device's own time line, and a graph cut into parts."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


def choose_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronise(device: torch.device) -> None:
    """Wait for the device, where it runs ahead."""
    if device.type != "cpu":
        torch.accelerator.synchronize()


class Stopwatch:
    """Seconds of named spans."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.spans: dict[str, list[tuple[Any, Any]]] = defaultdict(list)

    def mark(self) -> Any:
        """The present moment, on the device."""
        if self.device.type == "cpu":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Time of what is done inside."""
        start = self.mark()
        yield
        self.spans[name].append((start, self.mark()))

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, its time counted."""

        def call(*args: Any, **options: Any) -> Any:
            with self.span(name):
                return function(*args, **options)

        return call

    def seconds(self, name: str) -> float:
        """Sum of all spans of a name, once the device is done."""
        synchronise(self.device)
        if self.device.type == "cpu":
            return sum(end - start for start, end in self.spans[name])
        return sum(start.elapsed_time(end) for start, end in self.spans[name]) / 1e3


@contextmanager
def precision(name: str, device: torch.device) -> Iterator[Callable[[], AbstractContextManager[Any]]]:
    """Set how products are rounded; gives what a forward pass runs in."""
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    if name != "bf16":
        for backend in backends:
            backend.allow_tf32 = name == "tf32"
    try:
        yield lambda: torch.autocast(device.type, torch.bfloat16) if name == "bf16" else nullcontext()
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


class Cut:
    """A tensor at which the graph is cut: what follows gives its gradient to ``leaf``."""

    def __init__(self, whole: Tensor) -> None:
        self.whole, self.leaf = whole, whole.detach().requires_grad_()

    def backward(self) -> None:
        """Hand the gradient over."""
        self.whole.backward(self.leaf.grad)


class CutNetwork:
    """Times a network's forward pass and cuts the graph behind it."""

    def __init__(self, network: nn.Module, watch: Stopwatch, name: str) -> None:
        self.watch, self.name = watch, name
        self.hooks = [network.register_forward_pre_hook(self.before), network.register_forward_hook(self.after)]

    def before(self, *_: Any) -> None:
        """Hook."""
        self.start = self.watch.mark()

    def after(self, _: Any, __: Any, output: Tensor) -> Tensor:
        """Hook."""
        self.watch.spans[self.name].append((self.start, self.watch.mark()))
        self.cut = Cut(output)
        return self.cut.leaf

    def remove(self) -> None:
        """Leave the network as it was."""
        for hook in self.hooks:
            hook.remove()


def seconds(work: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Of one call, by the clock."""
    synchronise(device)
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    synchronise(device)
    return (time.perf_counter() - start) / repeats
