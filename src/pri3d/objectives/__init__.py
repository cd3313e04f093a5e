"""Features + batch -> loss terms. One file per objective; compose them by weights.

An objective is an :class:`Objective`, built with what the run has (:class:`Setup`) and its own options, and called with
what the network made of the batch. Add one by writing such a class and one line in ``registry.OBJECTIVES`` (or an entry
point ``pri3d.objectives``). Its options are a class of fields beside it; from these come its flags, ``--NAME.FIELD``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from pri3d import registry
from pri3d.api.options import Options
from pri3d.api.pretrain import ContrastOptions, MatchingOptions
from pri3d.errors import ConfigError

if TYPE_CHECKING:
    from pri3d.networks.encoders import Encoder

#: Every image a pair can bring, in the order a batch holds them.
VIEWS = ("first", "second", "copy")


class Features(NamedTuple):
    """What the network makes of the B x K images of a batch."""

    dense: Tensor  #: (B, K, C, h, w) feature maps of the decoder, channels last in memory
    maps: list[Tensor]  #: encoder maps (B * K, c, h', w'), finest first
    views: tuple[str, ...] = VIEWS[:2]  #: names of the K images

    def of(self, view: str) -> Tensor:
        """Feature maps (B, C, h, w) of one of the images."""
        return self.dense[:, self.views.index(view)]


class Terms(NamedTuple):
    """What an objective returns: a scalar loss and named scalars to log, all still on the device."""

    loss: Tensor  #: () float32
    log: dict[str, Tensor]  #: name -> () tensor, detached


class Setup(NamedTuple):
    """What a run has that objectives are built with."""

    channels: int = 0  #: of the decoder's feature map
    encoder: Encoder | None = None  #: of the network that is trained, with its initial weights
    contrast: ContrastOptions = ContrastOptions()
    matching: MatchingOptions = MatchingOptions()

    def encoder_for(self, objective: str, options: Options | None = None) -> Encoder:
        """Return the encoder. Raises ConfigError, which names the objective, without one and for impossible options."""
        if self.encoder is None:
            raise ConfigError(f"objective {objective!r}: it needs the network's encoder, given as Setup(encoder=...).")
        if options is not None and (wrong := options.problems()):
            raise ConfigError(f"objective {objective!r}: {'; '.join(wrong)}.")
        return self.encoder


class Objective(nn.Module, ABC):
    """One term of the loss.

    A subclass with options of its own states their class as ``options`` and takes an object of it as a second argument:
    ``def __init__(self, setup: Setup, options: MyOptions = MyOptions())``.
    """

    options: ClassVar[type[Options] | None] = None
    #: the images of a pair it wants, of "first", "second" and "copy" (the first frame, recoloured)
    views: tuple[str, ...] = VIEWS[:2]
    #: whether it looks at the decoder's map; where no objective of a run does, the decoder is left out
    decodes: ClassVar[bool] = True

    def __init__(self, setup: Setup) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, features: Features, batch: Any) -> Terms:
        """Loss of a batch, and what of it is logged."""

    def after_step(self) -> None:
        """Called after every optimizer step."""


def any_decodes(names: Iterable[str]) -> bool:
    """Whether any of the objectives of these names looks at the decoder's map; True where none is known here."""
    known = [name for name in names if name in registry.names("objectives", registry.OBJECTIVES)]
    return not known or any(registry.load("objectives", registry.OBJECTIVES, name).decodes for name in known)


class WeightedSum(nn.Module):
    """The objectives of a run and their weights: loss = sum of weight * term (paper section 3.3 has both weights 1).

    ``own`` are the options of those objectives that have some, by name; without an entry their defaults hold.
    """

    def __init__(self, weights: Mapping[str, float], setup: Setup, own: Mapping[str, Options] | None = None) -> None:
        super().__init__()
        if not weights or any(weight < 0 for weight in weights.values()) or not any(weights.values()):
            raise ConfigError(
                f"objectives = {dict(weights)}: give at least one with a positive weight, as in {{view: 1}}."
            )
        self.weights = {name: float(weight) for name, weight in weights.items() if weight > 0}
        terms: dict[str, Objective] = {}
        for name in self.weights:
            kind: type[Objective] = registry.load("objectives", registry.OBJECTIVES, name)
            values = dict((own or {})[name].items()) if name in (own or {}) else {}
            terms[name] = kind(setup) if kind.options is None else kind(setup, kind.options(**values))  # type: ignore[call-arg]
        self.terms = nn.ModuleDict(terms)

    @property
    def views(self) -> tuple[str, ...]:
        """Images of a pair that any of the objectives wants."""
        wanted = {view for term in self.terms.values() for view in term.views}  # type: ignore[union-attr]
        return tuple(view for view in VIEWS if view in wanted)

    @property
    def decodes(self) -> bool:
        """Whether any of the objectives looks at the decoder's map."""
        return any(term.decodes for term in self.terms.values())

    def forward(self, features: Features, batch: Any) -> Terms:
        """Sum the weighted terms; logged names get the objective's name in front."""
        total: Tensor | float = 0.0
        log: dict[str, Tensor] = {}
        for name, objective in self.terms.items():
            terms = objective(features, batch)
            total = total + self.weights[name] * terms.loss
            log[f"{name}/loss"] = terms.loss.detach()
            log.update({f"{name}/{key}": value for key, value in terms.log.items()})
        return Terms(torch.as_tensor(total), log)

    def after_step(self) -> None:
        """Tell the objectives that the optimizer has made a step."""
        for objective in self.terms.values():
            objective.after_step()  # type: ignore[operator]
