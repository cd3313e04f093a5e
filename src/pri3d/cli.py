"""The command line: each verb is the function of the same name, its signature the options.

The only file that knows jsonargparse. A verb's module is imported when that verb is asked for, so ``pri3d --help``
needs no PyTorch.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from jsonargparse import ArgumentParser

import pri3d
from pri3d import registry
from pri3d.errors import Pri3DError
from pri3d.files.atomic import is_full
from pri3d.machine import limit_spinning

#: verb -> what it does, example
ABOUT = {
    "demo": ("the whole chain on rendered rooms: no data, no GPU", "pri3d demo --out demo --max-minutes 8"),
    "rooms": (
        "render furnished rooms as RGB-D recordings with labels",
        "pri3d rooms data/rooms --rooms 24 --frames 40",
    ),
    "check": (
        "are a recording's poses, axes, depth, cameras and times right? A verdict with pictures",
        "pri3d check scans/kitchen --reader sevenscenes",
    ),
    "prepare": (
        "recordings -> frames, overlapping pairs, surface",
        "pri3d prepare scans/kitchen out/kitchen --reader sevenscenes",
    ),
    "pretrain": (
        "prepared pairs -> a better backbone (View, Geo, View+Geo)",
        "pri3d pretrain out/kitchen --preset quick --steps 300 --run runs/kitchen",
    ),
    "probe": (
        "how well features find the same point in another view, by angle",
        "pri3d probe out/kitchen --weights runs/kitchen",
    ),
    "coco": (
        "labelled images of any format -> a COCO file of their objects",
        "pri3d coco scannet_frames_25k scannet_val.json --split val",
    ),
    "finetune": (
        "backbone + labelled images -> a segmentation or detection network and its scores",
        "pri3d finetune semantic out/train --val out/val --weights runs/kitchen",
    ),
    "evaluate": (
        "a fine-tuned run -> scores, from predictions written once",
        "pri3d evaluate runs/kitchen-seg --resolution native",
    ),
    "predict": (
        "a fine-tuned run + images or a video -> masks, pictures, json",
        "pri3d predict runs/kitchen-seg photos --out predictions",
    ),
    "embed": (
        "images + any backbone -> their features, pooled or as maps",
        "pri3d embed runs/kitchen photos --out photos.npz",
    ),
    "view": (
        "look at a prepared store or a run: cameras, surface, matches, features",
        "pri3d view out/kitchen --save kitchen.rrd",
    ),
    "export": (
        "a run -> weights for other libraries",
        "pri3d export runs/kitchen --to torchvision --out kitchen_r18.safetensors",
    ),
    "import": (
        "a checkpoint of another program -> weights for pri3d",
        "pri3d import moco_v2_800ep_pretrain.pth.tar moco.safetensors",
    ),
    "reproduce": (
        "a table or figure of the paper from runs of your own, beside the paper's figures",
        "pri3d reproduce table1 --fractions 0.2,1 --workers 2",
    ),
    "report": (
        "runs -> one HTML page: curves, scores, features to click into, predictions, settings",
        "pri3d report runs/kitchen --data out/kitchen --out kitchen.html",
    ),
    "models": ("what can be built, and what was measured with it", "pri3d models --encoder vit_small_patch16_dinov3"),
}


#: hint of a parameter that takes several folders -> help of a positional one
_SEVERAL: dict[Any, str] = {
    list[Path]: "one or more folders",
    Path | list[Path]: "one or more folders; of several each may have a weight, as in FOLDER:0.5",
}


class Parser(ArgumentParser):
    """Shows options with hyphens, as they are usually typed; underscores work as well."""

    def format_help(self, *args: Any, **options: Any) -> str:
        """Help text with hyphenated options."""
        text = str(super().format_help(*args, **options))
        return re.sub(r"--\w+", lambda found: "--" + found[0][2:].replace("_", "-"), text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. Exit code 0, 1 for an error that says what to do, 2 for a wrong option, 130 after CTRL-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        print(f"pri3d {pri3d.__version__}")
        return 0
    limit_spinning()
    try:
        if words[0] not in ABOUT:
            raise registry.unknown("verb", list(ABOUT), words[0])
        verb = pri3d.find_verb(words[0])
        options = build_parser(words[0], verb).parse_args(normalise(words[1:], verb))
        verb(**vars(options))
    except Pri3DError as error:
        print(f"error: {error}", file=sys.stderr)
        return 130 if error.__class__.__name__ == "InterruptedRunError" else 1
    except OSError as error:
        if not is_full(error):
            raise
        print(f"error: {error}. The disk is full; make room, and the same command continues", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        how = {"pretrain": "--resume continues", "finetune": "--resume continues", "demo": "it begins anew next time"}
        print(f"interrupted; {how.get(words[0], 'the same command continues')}", file=sys.stderr)
        return 130
    return 0


def build_parser(name: str, verb: Callable[..., Any]) -> Parser:
    """Parser of one verb from its signature and docstring.

    Required parameters are positional; of folders in a list, the first parameter is positional and takes several, any
    other is an option that takes several or is repeated.
    """
    parser = Parser(prog=f"pri3d {name}", epilog=f"example: {ABOUT[name][1]}")
    hints = get_type_hints(verb)
    parameters = inspect.signature(verb).parameters
    several = {key for key in parameters if hints[key] in _SEVERAL}
    for key in several:
        if key == next(iter(parameters)):
            shown = key.upper().removesuffix("S")
            parser.add_argument(key, nargs="+", type=Path, metavar=shown, help=_SEVERAL[hints[key]])
    parser.add_function_arguments(verb, as_positional=True, skip={*several})
    for key in several - {next(iter(parameters))}:
        parser.add_argument(f"--{key}", nargs="+", action="extend", type=Path, required=True, help="one or more")
    return parser


def normalise(words: Sequence[str], verb: Callable[..., Any]) -> list[str]:
    """Options as the parser knows them: ``--min-overlap`` is ``--min_overlap``, ``--no-labels`` ``--labels=false``."""
    hints = get_type_hints(verb)
    switches = {key for key, hint in hints.items() if hint in (bool, bool | None) and key != "return"}
    result = []
    for position, word in enumerate(words):
        name, equals, value = word.partition("=")
        if not word.startswith("--"):
            result.append(word)
            continue
        name = name[2:].replace("-", "_")
        following = words[position + 1] if position + 1 < len(words) else ""
        if name in switches and not equals and following not in ("true", "false"):
            result.append(f"--{name}=true")
        elif name.startswith("no_") and name[3:] in switches and not equals:
            result.append(f"--{name[3:]}=false")
        else:
            result.append(f"--{name}{equals}{value}")
    return result


def _overview() -> str:
    width = max(map(len, ABOUT))
    lines = [f"  {name.ljust(width)}  {about}" for name, (about, _) in ABOUT.items()]
    examples = [f"  {example}" for _, example in ABOUT.values()]
    return "\n".join(
        [
            "usage: pri3d VERB ...    (pri3d VERB --help for its options)",
            "",
            "Turns posed RGB-D recordings into better image backbones (Pri3D, ICCV 2021).",
            "",
            "verbs:",
            *lines,
            "",
            "examples:",
            *examples,
        ]
    )
