"""An objective of your own: twenty lines, trained beside the built-in ones.

    python examples/own_objective.py STORE [--out FOLDER]
    python examples/own_objective.py --tiny

Needs: a prepared dataset; without one, rendered rooms are made.

You should see: metrics of the objective beside those of `view` (`spread/loss`, `spread/spread`), and that its option is
an option of the run. Here it is registered for this process alone; in a package of yours one entry point does it, and
then the command line knows `--objectives '{view: 1, spread: 0.1}' --spread.target 0.5` (docs/extending/objective.md).
"""

# %% The objective
import argparse
from pathlib import Path

import torch

import pri3d
from pri3d import registry
from pri3d.api.options import Options, option
from pri3d.api.pretrain import MatchingOptions
from pri3d.objectives import Features, Objective, Setup, Terms
from pri3d.types import PairBatch


class SpreadOptions(Options):
    """Variance of the feature channels."""

    group = "spread"

    target: float = option("standard deviation that is wanted of each channel", default=1.0, above=0)


class SpreadObjective(Objective):
    """Keep the channels of the feature map from collapsing: the variance term of VICReg."""

    options = SpreadOptions

    def __init__(self, setup: Setup, options: SpreadOptions) -> None:
        super().__init__(setup)
        self.channels, self.target = setup.channels, options.target

    def forward(self, features: Features, batch: PairBatch) -> Terms:
        """Features of both frames -> loss and the mean deviation."""
        maps = torch.cat([features.of("first"), features.of("second")])  # (2 B, channels, h, w)
        rows = maps.float().movedim(1, -1).reshape(-1, self.channels)
        spread = (rows.var(dim=0) + 1e-4).sqrt()
        return Terms(loss=(self.target - spread).clamp(min=0).mean(), log={"spread": spread.mean().detach()})


# %% A run with it
def main() -> None:
    """Register it, train, and print its metrics."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("store", nargs="?", type=Path)
    parser.add_argument("--out", type=Path, default=Path("objective"))
    parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes; shows that it runs")
    given = parser.parse_args()
    registry.OBJECTIVES["spread"] = "own_objective:SpreadObjective"  # this file, as an import finds it
    store, small = given.store, {}
    if store is None:
        count, frames, size, distance = (1, 8, "64x48", 0.1) if given.tiny else (12, 40, "160x120", 0.04)
        pri3d.rooms(given.out / "rooms", rooms=count, frames=frames, size=size, labels=False, processes=1)
        store = pri3d.prepare(
            [given.out / "rooms"], given.out / "prepared", size=size, distance=distance, surface=False, processes=1
        )
        small = {"size": size, "matching": MatchingOptions(distance=distance)}
    if given.tiny:
        small |= {"steps": 3, "batch": 2, "micro_batch": 2, "workers": 0, "holdout": 0}
    run = pri3d.pretrain(
        store,
        objectives={"view": 1, "spread": 0.1},
        options=[SpreadOptions(target=0.5)],
        run=given.out / "run",
        **small,
    )
    for row in run.metrics[-3:]:
        print({name: round(value, 4) for name, value in row.items() if name.startswith(("step", "view/", "spread/"))})
    print("of the run's settings:", run.settings["spread"])


if __name__ == "__main__":
    main()
