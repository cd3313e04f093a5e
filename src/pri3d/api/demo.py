"""``pri3d demo``: its options."""

from __future__ import annotations

from pri3d.api.options import AnyPath, Options, implementation, option, verb
from pri3d.api.results import Output


class DemoOptions(Options):
    """Options of :func:`demo`."""

    out: AnyPath = option("folder to write", default="demo")
    max_minutes: float = option(
        "where the machine is too slow for the full number of steps, both are cut alike to fit, and the report says so",
        default=8.0,
        above=0,
    )
    seed: int = option("random seed of the rooms and of pre-training", default=0, least=0)
    processes: int = option("processes; 0 takes one per core", default=0, least=0)


@verb(DemoOptions, "pri3d demo --out demo --max-minutes 8")
def demo(options: DemoOptions) -> Output:
    """Run the whole workflow on rendered rooms: no data, no GPU, no download.

    Renders rooms, prepares them, continues an ImageNet encoder on them, measures what it finds again in rooms that it
    has not seen, fine-tunes a segmentation network from scratch, from ImageNet and from the continued weights with two
    seeds each, exports the encoder, and writes OUT/results.json and OUT/report.html. Started again in the same folder
    it starts over.

    Returns the report.
    """
    return Output(implementation("pri3d.chain:demo")(options))
