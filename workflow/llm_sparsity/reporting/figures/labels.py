"""Label placement: names beside points, without overlap."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

Point = tuple[float, float, str, str]  # x, y, name, colour
Points = dict[Axes, list[Point]]
Name = tuple[float, float, float, str]  # its left and right end and its centre, in typographic points; its side
Box = tuple[float, float, float, float]  # left, right, bottom, top

HEIGHT, WIDTH = 9.4, 4.7  # of a letter, with a margin, in typographic points
APART, RADIUS = 5.0, 3.0  # of a name from its point, of a marker
NAMED = 4  # points of patterns in one panel that can all be named
FAR = 20.0  # points above a point, where a name is taken for that of another
GROUND = {"facecolor": "white", "edgecolor": "none", "alpha": 0.6, "pad": 0.5}  # of a name, which may cross a line


def name_points(figure: Figure, points: Points, up: float = 0) -> None:
    """Write names beside points, such as the last points of lines, so that none touches another.

    Args:
        figure: the figure.
        points: of each panel.
        up: 0: names stand to the right of their points, and move up or down as far as necessary. Else this many
            typographic points above or below, to the right or to the left; a name that finds no place is left out.
    """
    figure.draw_without_rendering()  # the layout decides where points are
    point = figure.dpi / 72
    for ax, labels in points.items():
        places = [tuple(map(float, ax.transData.transform((x, y)) / point)) for x, y, _, _ in labels]
        order = sorted(range(len(labels)), key=lambda number: places[number][1])
        taken = [(x - RADIUS, x + RADIUS, y - RADIUS, y + RADIUS) for x, y in places]
        names = {}
        for number in order:
            (x, y), width = places[number], WIDTH * len(labels[number][2])
            if name := _corner(x, y, width, up, taken) if up else _beside(x, y, width, taken):
                names[number] = name
                taken.append(_box(name))
        if not up:
            _fall(names, ax.bbox.y1 / point)
        for number, (_, _, centre, side) in names.items():
            at, value, text, colour = labels[number]
            ax.annotate(
                text, (at, value), (7 if side == "left" else -7, centre - places[number][1]),
                textcoords="offset points", color=legible(colour), ha=side, va="center", fontsize=8.5,
                annotation_clip=False, bbox=GROUND,
            )  # fmt: skip


def _beside(x: float, y: float, width: float, taken: Sequence[Box]) -> Name:
    """The lowest free place to the right of a point, from its height up."""
    left = x + APART
    return left, left + width, _rise(left, left + width, y, taken), "left"


def _corner(x: float, y: float, width: float, up: float, taken: Sequence[Box]) -> Name | None:
    """The first free corner of a point, or the next place above it; None if that is too far away."""
    left, right = x + APART, x - APART
    for start, end, side in ((left, left + width, "left"), (right - width, right, "right")):
        for centre in (y + up, y - up):
            if _rise(start, end, centre, taken) == centre:
                return start, end, centre, side
    centre = _rise(left, left + width, y + up, taken)
    return (left, left + width, centre, "left") if centre - y <= FAR else None


def _rise(left: float, right: float, centre: float, taken: Sequence[Box]) -> float:
    """The lowest centre, from this one up, at which a name touches none of the boxes."""
    for start, end, bottom, top in sorted(taken, key=lambda box: box[3]):
        if start < right and left < end and bottom < centre + HEIGHT / 2 and centre - HEIGHT / 2 < top:
            centre = top + HEIGHT / 2
    return centre


def _fall(names: dict[int, Name], top: float) -> None:
    """Move names that rose above the panel down, and those below them."""
    above: list[Box] = []
    for number, (left, right, centre, side) in sorted(names.items(), key=lambda item: -item[1][2]):
        ends = (bottom for start, end, bottom, _ in above if start < right and left < end)
        names[number] = left, right, min(centre, min(ends, default=top) - HEIGHT / 2), side
        above.append(_box(names[number]))


def _box(name: Name) -> Box:
    left, right, centre, _ = name
    return left, right, centre - HEIGHT / 2, centre + HEIGHT / 2


def legible(colour: str) -> str:
    """A colour, darkened until text in it has a contrast of 4.5 to white (WCAG 2.2, 1.4.3)."""
    rgb = to_rgb(colour)
    while 1.05 / (_luminance(rgb) + 0.05) < 4.5:
        rgb = tuple(0.95 * part for part in rgb)
    return str(to_hex(rgb))


def _luminance(rgb: Sequence[float]) -> float:
    """The relative luminance of a colour, as WCAG 2.2 defines it."""
    linear = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in rgb)
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def thinned(points: list[Point]) -> list[Point]:
    """The points to be named, where names such as "2of4, kept" start with a pattern: all, or the highest of each."""
    if len(points) <= NAMED:
        return points
    highest: dict[str, Point] = {}
    for x, y, name, _ in sorted(points, key=lambda point: point[1]):
        pattern = name.split(",")[0]
        highest[pattern] = (x, y, pattern, "#333333")
    return list(highest.values())
