"""Draws a graph of slots as an SVG picture, which any browser shows."""

from __future__ import annotations

from html import escape

from bnb_ds.generate.graph_view import GraphView, Vertex, steps_of

_COLUMN, _ROW, _WIDTH, _HEIGHT, _MARGIN = 132, 84, 96, 52, 24
_INK, _PATH, _PAPER, _FAINT = "#1f2933", "#0b6e99", "#ffffff", "#697586"
_STYLE = f"text{{font-family:sans-serif;fill:{_INK};text-anchor:middle}} .small{{font-size:11px;fill:{_FAINT}}}"


def draw(view: GraphView) -> str:
    """The picture: slots from left to right, with their best token; the path of the output in colour.

    A slot's border and a link are as strong as the probability that a path takes them. A pointer that rests on a slot
    or a link shows the numbers.
    """
    places = _places(view)
    columns, rows = (max(place[axis] for place in places.values()) + 1 for axis in (0, 1))
    width, height = 2 * _MARGIN + columns * _COLUMN, 2 * _MARGIN + rows * _ROW + 40
    hidden = view.num_slots - len(view.vertices)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        f"<title>{escape(view.text)}</title><style>{_STYLE}</style>",
        f'<rect width="{width}" height="{height}" fill="{_PAPER}"/>',
        f'<text x="{_MARGIN}" y="22" style="text-anchor:start">{escape(view.text)}</text>',
        f'<text x="{_MARGIN}" y="38" class="small" style="text-anchor:start">{view.num_slots} slots, of which {hidden}'
        " that few paths pass are not shown</text>",
    ]
    steps = steps_of(view.path)
    # The path comes last, so that nothing covers it.
    for link, probability in sorted(view.links.items(), key=lambda item: item[0] in steps):
        parts.append(_link(places[link[0]], places[link[1]], link, probability, link in steps))
    on_path = set(view.path)
    parts += [_vertex(places[vertex.slot], vertex, vertex.slot in on_path) for vertex in view.vertices]
    return "\n".join([*parts, "</svg>\n"])


def _places(view: GraphView) -> dict[int, tuple[int, int]]:
    """Column and row of each slot; the path is row 0.

    A column is one more than that of any slot that links to it; if no link to it is shown, than that of the last slot
    of the path before it.
    """
    on_path = set(view.path)
    sources: dict[int, list[int]] = {}
    for before, after in view.links:
        sources.setdefault(after, []).append(before)
    column: dict[int, int] = {}
    passed: list[int] = []
    for slot in sorted(vertex.slot for vertex in view.vertices):  # links go to later slots
        column[slot] = max((column[before] + 1 for before in sources.get(slot, passed)), default=0)
        if slot in on_path:
            passed = [slot]
    filled: dict[int, int] = {}
    places: dict[int, tuple[int, int]] = {}
    for vertex in view.vertices:
        place = column[vertex.slot]
        filled.setdefault(place, int(any(column[slot] == place for slot in on_path)))
        if vertex.slot in on_path:
            places[vertex.slot] = (place, 0)
        else:
            places[vertex.slot] = (place, filled[place])
            filled[place] += 1
    return places


def _corner(place: tuple[int, int]) -> tuple[int, int]:
    """The upper left corner of a slot."""
    return _MARGIN + place[0] * _COLUMN, _MARGIN + 36 + place[1] * _ROW


def _link(
    before: tuple[int, int], after: tuple[int, int], link: tuple[int, int], probability: float, is_on_path: bool
) -> str:
    x1, y1 = _corner(before)
    x2, y2 = _corner(after)
    x1, y1, y2 = x1 + _WIDTH, y1 + _HEIGHT // 2, y2 + _HEIGHT // 2
    bend = max((x2 - x1) // 2, 12)
    # A link over other columns of the same row goes around them.
    dip = _ROW // 2 if before[1] == after[1] and after[0] - before[0] > 1 else 0
    curve = f"M{x1},{y1} C{x1 + bend},{y1 + dip} {x2 - bend},{y2 + dip} {x2},{y2}"
    colour = _PATH if is_on_path else _FAINT
    return (
        f'<path d="{curve}" fill="none" stroke="{colour}" stroke-width="{1 + 3 * probability:.1f}"'
        f' stroke-opacity="{0.25 + 0.75 * min(probability, 1.0):.2f}"><title>slot {link[0]} to {link[1]}:'
        f" {probability:.1%} of all paths</title></path>"
    )


def _vertex(place: tuple[int, int], vertex: Vertex, is_on_path: bool) -> str:
    x, y = _corner(place)
    token, probability = vertex.tokens[0]
    others = ", ".join(f"{name} {value:.1%}" for name, value in vertex.tokens)
    colour = _PATH if is_on_path else _FAINT
    label = token if len(token) <= 12 else f"{token[:11]}…"
    return (
        f"<g><title>slot {vertex.slot}: {vertex.passing:.1%} of all paths; {escape(others)}</title>"
        f'<rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="6" fill="{_PAPER}" stroke="{colour}"'
        f' stroke-width="{1 + 2 * vertex.passing:.1f}"/>'
        f'<text x="{x + _WIDTH // 2}" y="{y + 23}" font-size="15">{escape(label)}</text>'
        f'<text x="{x + _WIDTH // 2}" y="{y + 41}" class="small">slot {vertex.slot} · {probability:.0%}</text></g>'
    )
