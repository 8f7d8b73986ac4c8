"""Label placement: names beside points, without overlap."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

Point = tuple[float, float, str, str]  # x, y, name, colour
Points = dict[Axes, list[Point]]

HEIGHT, WIDTH = 9.4, 4.7  # of a letter, with a margin, in typographic points
APART, RADIUS = 5.0, 3.0  # of a name from its point, of a marker
GROUND = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5}  # of a name, which may cross a line


def name_points(figure: Figure, points: Points, up: float = 0) -> None:
    """Write names beside points, such as the last points of lines.

    A name stands to the right of its point and `up` points above it. If it would touch another name or point there,
    it stands below or to the left; if no corner is free, or if `up` is 0, it moves up as far as necessary.
    """
    figure.draw_without_rendering()  # the layout decides where points are
    point = figure.dpi / 72
    height, width, apart, radius = (length * point for length in (HEIGHT, WIDTH, APART, RADIUS))
    corners = [(side, rise * point) for side in ("left", "right") for rise in (up, -up)] if up else [("left", 0.0)]
    for ax, labels in points.items():
        places = [tuple(map(float, ax.transData.transform((x, y)))) for x, y, _, _ in labels]
        taken = [(x - radius, x + radius, y - radius, y + radius) for x, y in places]
        for (x, y), (at, value, text, colour) in sorted(zip(places, labels, strict=True), key=lambda each: each[0][1]):
            found = []
            for side, rise in corners:
                left = x + apart if side == "left" else x - apart - width * len(text)
                centre = _rise(left, left + width * len(text), y + rise, height, taken)
                found.append((centre != y + rise, side, left, centre))
            _, side, left, centre = next((place for place in found if not place[0]), found[0])
            taken.append((left, left + width * len(text), centre - height / 2, centre + height / 2))
            ax.annotate(
                text, (at, value), (7 if side == "left" else -7, (centre - y) / point), textcoords="offset points",
                color=legible(colour), ha=side, va="center", fontsize=8.5, annotation_clip=False, bbox=GROUND,
            )  # fmt: skip


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


def thinned(points: list[Point], limit: int = 4) -> list[Point]:
    """The points to be named, where names such as "2of4, kept" start with a pattern: all, or the highest of each.

    Args:
        points: of patterns.
        limit: number of points of one panel that can all be named.
    """
    if len(points) <= limit:
        return points
    highest: dict[str, Point] = {}
    for x, y, name, _ in sorted(points, key=lambda point: point[1]):
        pattern = name.split(",")[0]
        highest[pattern] = (x, y, pattern, "#333333")
    return list(highest.values())


def _rise(left: float, right: float, centre: float, height: float, taken: Sequence[tuple[float, ...]]) -> float:
    """The lowest centre, from this one up, at which a name touches none of the boxes (left, right, bottom, top)."""
    for start, end, bottom, top in sorted(taken, key=lambda box: box[3]):
        if start < right and left < end and bottom < centre + height / 2 and centre - height / 2 < top:
            centre = top + height / 2
    return centre
