"""``pri3d report``: its options."""

from __future__ import annotations

from collections.abc import Sequence

from pri3d.api.options import AnyPath, Options, implementation, option, verb
from pri3d.api.results import Output


class ReportOptions(Options):
    """Options of :func:`report`."""

    runs: Sequence[AnyPath] = option(
        "pre-training and fine-tuning runs, folders of several runs (a demo's, or that of a comparison), and "
        "results of `pri3d probe` (.json)",
        kw_only=False,
    )
    data: AnyPath | None = option(
        "prepared dataset of the runs, or a folder of several, if they have moved; default: the folders that the "
        "runs name",
        default=None,
    )
    out: AnyPath = option("page to write", default="report.html")


@verb(ReportOptions, "pri3d report runs/kitchen --data out/kitchen --out kitchen.html")
def report(options: ReportOptions) -> Output:
    """Write one HTML page for one or several runs: curves, scores, features, predictions, settings.

    The page is self-contained: it needs no other file and no network connection. What cannot be shown, because a
    run is not finished or its data have moved, is left out, and the page says so.

    Returns the page. Raises ConfigError where ``out`` cannot be written; DataError or WeightsError where a path is no
    run, or a file is there but damaged.
    """
    return Output(implementation("pri3d.reporting.report:make_report")(options))
