"""Paint a scene; a person can read the result at 112 px."""

from __future__ import annotations

from PIL import Image, ImageDraw

from .scenes import AXIS, COLORS, GRID, SIDE_PX

ZOOM = 3  # painted larger and averaged down, for smooth edges


def render(scene: dict) -> Image.Image:
    """Paint a scene as an RGB image of `SIDE_PX` pixels a side."""
    side = SIDE_PX * ZOOM
    ground = scene["style"].get("ground", 255)
    image = Image.new("RGB", (side, side), (ground,) * 3)
    _PAINT[scene["kind"]](ImageDraw.Draw(image), scene, side)
    return image.reduce(ZOOM)


def _shade(color: tuple[int, ...], factor: float) -> tuple[int, ...]:
    """Darken (factor < 1) or lighten (> 1) a colour."""
    if factor <= 1:
        return tuple(int(c * factor) for c in color)
    return tuple(int(255 - (255 - c) / factor) for c in color)


def _paint_objects(pen: ImageDraw.ImageDraw, scene: dict, side: int) -> None:
    for item in scene["objects"]:
        box = [v * side for v in item["box"]]
        _SOLIDS[item["shape"]](pen, box, COLORS[item["color"]])


def _cube(pen: ImageDraw.ImageDraw, box: list[float], color: tuple[int, ...]) -> None:
    x0, y0, x1, y1 = box
    d = (x1 - x0) * 0.25
    pen.rectangle((x0, y0 + d, x1 - d, y1), fill=color)
    pen.polygon([(x0, y0 + d), (x0 + d, y0), (x1, y0), (x1 - d, y0 + d)], fill=_shade(color, 1.9))
    pen.polygon([(x1 - d, y0 + d), (x1, y0), (x1, y1 - d), (x1 - d, y1)], fill=_shade(color, 0.6))


def _ball(pen: ImageDraw.ImageDraw, box: list[float], color: tuple[int, ...]) -> None:
    x0, y0, x1, _y1 = box
    r = x1 - x0
    pen.ellipse(box, fill=color)
    pen.ellipse((x0 + r * 0.2, y0 + r * 0.15, x0 + r * 0.45, y0 + r * 0.4), fill=_shade(color, 3))


def _cone(pen: ImageDraw.ImageDraw, box: list[float], color: tuple[int, ...]) -> None:
    x0, y0, x1, y1 = box
    middle, d = (x0 + x1) / 2, (y1 - y0) * 0.12
    pen.polygon([(middle, y0), (x1, y1 - d), (x0, y1 - d)], fill=color)
    pen.polygon([(middle, y0), (x1, y1 - d), (middle, y1 - d)], fill=_shade(color, 0.7))
    pen.ellipse((x0, y1 - 2 * d, x1, y1), fill=_shade(color, 0.7))


def _cylinder(pen: ImageDraw.ImageDraw, box: list[float], color: tuple[int, ...]) -> None:
    x0, y0, x1, y1 = box
    inset, d = (x1 - x0) * 0.18, (y1 - y0) * 0.13
    pen.ellipse((x0 + inset, y1 - 2 * d, x1 - inset, y1), fill=color)
    pen.rectangle((x0 + inset, y0 + d, x1 - inset, y1 - d), fill=color)
    pen.ellipse((x0 + inset, y0, x1 - inset, y0 + 2 * d), fill=_shade(color, 1.9))


_SOLIDS = {"cube": _cube, "ball": _ball, "cone": _cone, "cylinder": _cylinder}


def _paint_bars(pen: ImageDraw.ImageDraw, scene: dict, side: int) -> None:
    step, base = side / 11, side * 10.5 / 11
    for line in range(11):
        y = base - line * step
        pen.line((0, y, side, y), fill=(150,) * 3 if line in (0, 5, 10) else (222,) * 3, width=2)
    for slot, bar in enumerate(scene["bars"]):
        x0, x1 = (slot + 0.2) * side / GRID, (slot + 0.8) * side / GRID
        pen.rectangle((x0, base - bar["value"] * step, x1, base), fill=COLORS[bar["color"]])


def _paint_function(pen: ImageDraw.ImageDraw, scene: dict, side: int) -> None:
    def at(x: float, y: float) -> tuple[float, float]:
        unit = side / (2 * AXIS + 0.4)
        return side / 2 + x * unit, side / 2 - y * unit

    for tick in range(-AXIS, AXIS + 1):
        shade, width = ((60,) * 3, 4) if tick == 0 else ((215,) * 3, 2)
        pen.line((*at(tick, -AXIS), *at(tick, AXIS)), fill=shade, width=width)
        pen.line((*at(-AXIS, tick), *at(AXIS, tick)), fill=shade, width=width)
    a, h, k = scene["a"], scene["h"], scene["k"]
    shape = {"line": lambda x: x, "absolute": abs, "parabola": lambda x: x * x}[scene["family"]]
    points = [(x, a * shape(x - h) + k) for x in (i / 20 - AXIS for i in range(40 * AXIS + 1))]
    pen.line(
        [at(x, y) for x, y in points if abs(y) <= AXIS + 1],
        fill=COLORS[scene["style"]["color"]],
        width=9,
        joint="curve",
    )


_PAINT = {"objects": _paint_objects, "bars": _paint_bars, "function": _paint_function}
