"""``pri3d probe`` with its picture: scoring knows no pictures, the report no networks; here the two are joined."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from pri3d.files.atomic import write_atomic
from pri3d.probing import probe as scoring
from pri3d.probing.probe import Scores
from pri3d.reporting.charts import Curves, recall_figure


@functools.wraps(scoring.probe)
def probe(*args: Any, **options: Any) -> dict[str, Scores]:
    """See :func:`pri3d.probing.probe.probe`; the picture of recall by angle is written beside its files."""
    call = inspect.signature(scoring.probe).bind(*args, **options)
    call.apply_defaults()
    results = scoring.probe(*call.args, **call.kwargs)
    pixels = f"{call.arguments['pixels']:g} px"
    panels: dict[str, Curves] = {}
    matching = {name: s.matching.by_angle for name, s in results.items() if s.matching}
    if matching:
        panels[f"Recall of true points within {pixels}"] = matching
    for end in ("10 px", "5 cm"):
        found = {
            name: {angle: values[end] for angle, values in s.correspondence.by_angle.items()}
            for name, s in results.items()
            if s.correspondence
        }
        if found:
            panels[f"Best matches right within {end}"] = found
    if panels:
        write_atomic(call.arguments["out"].with_suffix(".png"), recall_figure(panels))
    return results
