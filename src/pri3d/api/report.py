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
        "prepared dataset of the runs, or a folder of several: where their data lie now; default is what the runs name",
        default=None,
    )
    out: AnyPath = option("the page to write", default="report.html")


@verb(ReportOptions, "pri3d report runs/kitchen --data out/kitchen --out kitchen.html")
def report(options: ReportOptions) -> Output:
    """Make one HTML page of a run, or of several side by side: curves, scores, features, predictions, settings.

    The page holds everything it shows and asks no other file or network for anything. What cannot be shown, because a
    run is not finished or its data are elsewhere, is left out, and the page says so.

    Returns the page. Raises ConfigError where ``out`` cannot be written; DataError or WeightsError where a path is no
    run, or a file is there but damaged.
    """
    return Output(implementation("pri3d.reporting.report:make_report")(options))
