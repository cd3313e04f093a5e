"""Colours of classes, the same in every image; overlays of predictions and ground truth."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from itertools import chain, count
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pri3d.errors import ConfigError
from pri3d.types import Detections

#: Rooms consist of these more than of anything else: calm colours, so that the objects in them stand out.
_CALM = {"wall": "#aebfd6", "floor": "#c19a6b", "ceiling": "#ece7d5"}
#: Colours of all other classes, in order. Each is the farthest from the calm ones and all before it; the distance is
#: the least of CIELAB without red or without green cones (Machado et al. 2009), 0.6 x CIELAB with normal vision,
#: 1.3 x CIEDE2000, 1.5 x CIEDE2000 of half-transparent overlays on grey, and 0.35 x RGB.
# fmt: off
_BRIGHT = (
    "#000078", "#ff00ff", "#00ff00", "#78001e", "#d23c00", "#005a96", "#00785a", "#ff5a96", "#f0ff96",
    "#f096ff", "#7800ff", "#96b400", "#785ad2", "#78d25a", "#96ffff", "#780060", "#00f096", "#1e3cd2",
    "#00963c", "#783c00", "#0096ff", "#d2005a", "#00d2b4", "#d25ab4", "#0000d2", "#b4ff5a", "#f03c3c",
    "#781eb4", "#d21eb4", "#f0d278", "#b41eff", "#00b4d2", "#5ad296", "#00f0ff", "#5a0078", "#0096d2",
    "#d2963c",
)
# fmt: on
_READABLE_WIDTH = 640  # pixels of width; narrower images are enlarged to about that, or names would cover them
_READABLE_LUMA = 140.0  # luma 0..255 from which text on a colour is black
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)

RGB = tuple[int, int, int]
Box = tuple[float, float, float, float]


def palette(class_names: Sequence[str]) -> NDArray[np.uint8]:
    """Return (K, 3) RGB of K classes by name: calm ones for wall, floor and ceiling, bright ones for the rest in order.

    None is black. A class keeps its colour where other classes follow, and where wall, floor and ceiling are left out:
    in maps of all classes and in lists of objects alike, if these are all others. Raises ConfigError for more than 255
    classes: 255 is the ignored label.
    """
    if len(class_names) > 255:
        raise ConfigError(f"{len(class_names)} classes: label images hold at most 255, id 255 is ignored.")
    # The chosen colours, then without end hues by the golden ratio in three strengths.
    hues = ((k * 0.618034 % 1, (0.55, 0.85, 0.4)[k % 3], (0.95, 0.7, 0.5)[k % 3]) for k in count())
    more = ("#" + "".join(f"{round(255 * share):02x}" for share in colorsys.hsv_to_rgb(*hue)) for hue in hues)
    calm, bright = dict(_CALM), chain(_BRIGHT, more)
    rows = [calm.pop(name.casefold(), "") or next(bright) for name in class_names]
    return np.array([[int(row[k : k + 2], 16) for k in (1, 3, 5)] for row in rows], np.uint8).reshape(-1, 3)


def color_labels(label: NDArray[np.integer], class_names: Sequence[str]) -> NDArray[np.uint8]:
    """Class ids (H, W) -> RGB (H, W, 3) as :func:`palette`; ids that are no class, 255 among them, are black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(class_names)] = palette(class_names)
    colors: NDArray[np.uint8] = table[np.clip(label, 0, 255)]
    return colors


def draw_classes(
    color: NDArray[np.uint8], label: NDArray[np.uint8], class_names: Sequence[str], alpha: float = 0.5
) -> NDArray[np.uint8]:
    """Class map (H, W) over RGB (H, W, 3) -> RGB (s H + legend, s W, 3), s = 1 for images of 640 pixels and more.

    Every class has its colour of :func:`pri3d.drawing.palette`, of opacity ``alpha``, and a thin border; pixels of no
    class (255) stay as they are. The legend under the image names the classes that occur.
    """
    scale = _scale(color)
    picture, ids = _enlarge(color, scale), np.kron(label, np.ones((scale, scale), np.uint8))
    known = ids < len(class_names)
    tint = color_labels(ids, class_names)
    blended = np.asarray(Image.blend(Image.fromarray(picture), Image.fromarray(tint), alpha))
    drawn = np.where(known[..., None], blended, picture)
    edge = _edges(ids) & known
    drawn[edge] = tint[edge] // 3
    colors = palette(class_names)
    present = [k for k in np.unique(label).tolist() if k < len(class_names)]
    legend = draw_legend([(class_names[k], _rgb(colors[k])) for k in present], drawn.shape[1])
    return np.concatenate([drawn, legend])


def draw_detections(
    color: NDArray[np.uint8],
    found: Detections,
    class_names: Sequence[str],
    alpha: float = 0.45,
    with_scores: bool = True,
) -> NDArray[np.uint8]:
    """Objects over RGB (H, W, 3) -> RGB (s H, s W, 3), s = 1 for images of 640 pixels and more.

    Every object has the colour of its class in :func:`pri3d.drawing.palette`: its mask of opacity ``alpha`` with a
    border, its box, and its name, ``with_scores`` with the score in percent. Better objects lie over worse ones, and a
    name that would cover a better one's is left out.
    """
    scale = _scale(color)
    picture = _enlarge(color, scale).astype(np.float32)
    tints = palette(class_names)
    worst_first = np.argsort(found.scores, kind="stable")
    for k in worst_first:
        mask = np.kron(found.masks[k], np.ones((scale, scale), bool))
        tint = tints[found.classes[k]].astype(np.float32)
        picture[mask] = (1 - alpha) * picture[mask] + alpha * tint
        picture[mask & _edges(mask)] = tint
    image = Image.fromarray(picture.round().astype(np.uint8))
    pen = _Pen(ImageDraw.Draw(image), image.size)
    for k in worst_first:
        pen.box(found.boxes[k] * scale, _rgb(tints[found.classes[k]]))
    for k in worst_first[::-1]:
        name = class_names[found.classes[k]]
        pen.name(
            f"{name} {found.scores[k]:.0%}" if with_scores else name,
            found.boxes[k] * scale,
            _rgb(tints[found.classes[k]]),
        )
    return np.array(image)


def draw_legend(entries: Sequence[tuple[str, RGB]], width: int) -> NDArray[np.uint8]:
    """Names and colours -> RGB (h, ``width``, 3): black on white, in as many lines as they need."""
    font = _font(width)
    size = round(font.size)
    gap, swatch = max(4, size // 2), size + 2
    places, x, y = [], gap, gap
    for name, _ in entries:
        needed = swatch + gap // 2 + round(font.getlength(name)) + 2 * gap
        if x > gap and x + needed > width:
            x, y = gap, y + swatch + gap
        places.append((x, y))
        x += needed
    image = Image.new("RGB", (width, y + swatch + gap if entries else 0), _WHITE)
    pen = ImageDraw.Draw(image)
    for (name, color), (left, top) in zip(entries, places, strict=True):
        pen.rectangle((left, top, left + swatch, top + swatch), color, outline=(90, 90, 90))
        pen.text((left + swatch + gap // 2 + 2, top + swatch / 2 + 1), name, _BLACK, font, anchor="lm")
    return np.array(image).reshape(-1, width, 3)


def draw_lines(color: NDArray[np.uint8], lines: Sequence[str]) -> NDArray[np.uint8]:
    """RGB (H, W, 3) with lines of text under it -> RGB (s H + h, s W, 3), s = 1 for images of 640 pixels and more."""
    picture = _enlarge(color, _scale(color))
    font = _font(picture.shape[1])
    step = round(1.5 * font.size)
    below = Image.new("RGB", (picture.shape[1], step * len(lines) + step // 2), _WHITE)
    for k, line in enumerate(lines):
        ImageDraw.Draw(below).text((step // 2, step * k + step // 3), line, _BLACK, font)
    return np.concatenate([picture, np.asarray(below)])


class _Text(NamedTuple):
    width: float
    height: float
    pad: int


class _Pen:
    """Draws boxes and names, names clear of each other."""

    def __init__(self, draw: ImageDraw.ImageDraw, size: tuple[int, int]) -> None:
        self.draw, self.size = draw, size
        self.font = _font(size[0])
        self.line = max(2, size[0] // 400)
        self.taken: list[Box] = []

    def box(self, box: NDArray[np.float32], color: RGB) -> None:
        x0, y0, x1, y1 = (float(v) for v in box)
        self.draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=color, width=self.line)

    def name(self, text: str, box: NDArray[np.float32], color: RGB) -> None:
        left, top, right, bottom = self.draw.textbbox((0, 0), text, self.font, anchor="lt")
        pad = max(2, round(self.font.size / 6))
        shape = _Text(right - left + 2 * pad, bottom - top + 2 * pad, pad)
        place = self._place(box, shape)
        if place is None:
            return
        self.taken.append(place)
        self.draw.rectangle(place, color)
        dark = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] < _READABLE_LUMA
        self.draw.text((place[0] + pad, place[1] + pad), text, _WHITE if dark else _BLACK, self.font, anchor="lt")

    def _place(self, box: NDArray[np.float32], text: _Text) -> Box | None:
        """Above the box, else inside at its top, else below; None where names of better objects take all of them."""
        x0, y0, _, y1 = (float(v) for v in box)
        tops = (y0 - text.height, y0, y1)
        places = [self._inside(x0, top, text) for top in tops]
        free = [
            one
            for one in places
            if not any(
                one[0] < two[2] and two[0] < one[2] and one[1] < two[3] and two[1] < one[3] for two in self.taken
            )
        ]
        return free[0] if free else None

    def _inside(self, x: float, y: float, text: _Text) -> Box:
        """The place moved into the image."""
        x = max(0.0, min(x, self.size[0] - text.width - 1))
        y = max(0.0, min(y, self.size[1] - text.height - 1))
        return (x, y, x + text.width, y + text.height)


def _edges(ids: NDArray[np.uint8] | NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels (H, W) whose left or upper neighbour is another, or whose right or lower one is."""
    edge = np.zeros(ids.shape, bool)
    across, down = ids[:, 1:] != ids[:, :-1], ids[1:] != ids[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    return edge


def _scale(color: NDArray[np.uint8]) -> int:
    return int(max(1, round(_READABLE_WIDTH / color.shape[1])))


def _enlarge(color: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    height, width = color.shape[:2]
    return np.array(Image.fromarray(color).resize((width * scale, height * scale), Image.Resampling.BICUBIC))


def _font(width: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font, of a size that is read at this width of the image."""
    font = ImageFont.load_default(max(13, width // 45))
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise ConfigError("this Pillow was built without FreeType and cannot write names: pip install pillow")
    return font


def _rgb(color: NDArray[np.uint8]) -> RGB:
    red, green, blue = (int(v) for v in color)
    return red, green, blue
