"""``pri3d rooms``: its options."""

from __future__ import annotations

from pri3d.api.options import AnyPath, Options, implementation, option, verb
from pri3d.api.results import Output


class RoomsOptions(Options):
    """Options of :func:`rooms`."""

    out: AnyPath = option("folder to write; created if missing", kw_only=False)
    rooms: int = option("number of rooms", default=24, least=1)
    frames: int = option("frames per room; neighbours overlap by about 60 %", default=40, least=1)
    size: str = option("size of the images, WIDTHxHEIGHT in pixels", default="160x120")
    labels: bool = option("write class and instance labels, too", default=True)
    seed: int = option("random seed; different seeds give different rooms", default=0, least=0)
    first: int = option(
        "number of the first room; disjoint ranges have no room in common, which gives disjoint splits",
        default=0,
        least=0,
    )
    processes: int = option("processes; 0 uses one per core", default=0, least=0)


@verb(RoomsOptions, "pri3d rooms data/rooms --rooms 24 --frames 40")
def rooms(options: RoomsOptions) -> Output:
    """Render furnished rooms as RGB-D recordings with exact poses and labels, without any download.

    A finished room is kept, so a stopped run continues and a larger ``rooms`` adds to what is there. Room k of a seed
    is the same whatever the other options, up to size, labels and the number of frames.

    Returns the folder. Raises ConfigError where an option is out of range or ``out`` holds rooms of other settings,
    DataError where another run wrote one of the rooms meanwhile.
    """
    implementation("pri3d.worlds.write:rooms")(options)
    return Output(options.out)
