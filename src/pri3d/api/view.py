"""``pri3d view``: its options."""

from __future__ import annotations

from pri3d.api.options import AnyPath, Options, implementation, option, verb
from pri3d.api.results import Output


class ViewOptions(Options):
    """Options of :func:`view`."""

    source: AnyPath = option("prepared dataset, or folder of a run", kw_only=False)
    data: AnyPath | None = option("prepared dataset or labelled images of the run, if they have moved", default=None)
    scene: str | None = option("id of the scene; default: the first", default=None)
    max_frames: int = option("maximum number of frames, evenly spaced", default=40, least=1)
    max_pairs: int = option(
        "maximum number of pairs, at evenly spaced ranks of their overlap (no cherry-picking)", default=4, least=0
    )
    save: AnyPath | None = option(
        "write a rerun file, FILE.rrd, and open no window; `rerun FILE.rrd` opens it on any machine", default=None
    )
    out: AnyPath | None = option(
        "write the page to this file, and open no window; default with --html: beside the file of --save, else "
        "NAME-view.html in the current folder",
        default=None,
    )
    html: bool = option("write the page, and open no window", default=False)


@verb(ViewOptions, "pri3d view out/kitchen --save kitchen.rrd")
def view(options: ViewOptions) -> Output | None:
    """View a prepared dataset or a run: cameras, images, depth, surface, pairs and matches.

    Of a pre-training run: features of its network before and after as false colours, and the matches they make beside
    the measured ones. Of a fine-tuning run: ground truth and predictions. Opens rerun's viewer; without rerun, or
    without a screen, it writes a page for any browser.

    Returns the file that was written last; None where a window was opened. Raises ConfigError where a number is out of
    range or a file cannot be written; DataError where the folder is neither, is damaged, or has no such scene, or a
    run's data are not there.
    """
    written = implementation("pri3d.reporting.viewer:view")(options)
    return None if written is None else Output(written)
