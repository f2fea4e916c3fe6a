#!/usr/bin/env python3
"""Draws what was measured: `python3 scripts/pictures.py` writes docs/pictures/*.svg, with `--check` it only tells
whether they are those of today's results.

Reads bench/results/*.md (the JSON of `flash-moe bench --report`), bench/results/history.json, docs/experiments.md, and
bench/results/quality.json where it is there. Needs nothing but Python. bench/results/README.md describes the files.
"""
import json
import math
import re
import sys
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench/results"
WIDTH = 760
COLOURS = ["#4f8fea", "#e09b3d", "#58a65c", "#a371f7", "#d46fa8", "#35b0ab"]
KEPT, DISCARDED, QUIET = "#3f9e5c", "#d9534f", "#8b949e"
STYLE = (
    "text{font-family:system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif;font-size:13px;fill:#1f2328}"
    ".title{font-size:16px;font-weight:600}.small{font-size:12px;fill:#59636e}.head{font-weight:600}"
    ".ground{fill:#fff}.axis{stroke:#59636e}.grid{stroke:#d8dee4}"
    "@media(prefers-color-scheme:dark){text{fill:#f0f6fc}.small{fill:#9198a1}.ground{fill:#0d1117}"
    ".axis{stroke:#9198a1}.grid{stroke:#30363d}}"
)


class Picture:
    """An SVG that paints its own ground and follows the viewer's preference for light or dark."""

    def __init__(self, height, title, subtitle=""):
        self.height = height
        self.body = [f"<title>{escape(title)}</title>"]
        self.text(24, 30, title, "title")
        for index, line in enumerate(wrap(subtitle, 108)):
            self.text(24, 51 + 17 * index, line, "small")

    def add(self, element):
        self.body.append(element)

    def text(self, x, y, text, css="", anchor="start"):
        self.add(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{css}">{escape(text)}</text>')

    def line(self, x1, y1, x2, y2, css="grid", colour=None, dashes=None):
        style = f' stroke="{colour}" stroke-width="2"' if colour else ""
        style += f' stroke-dasharray="{dashes}"' if dashes else ""
        css = "" if colour else f' class="{css}"'
        self.add(f'<line{css}{style} x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')

    def path(self, points, colour, dashes=None):
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        style = f' stroke-dasharray="{dashes}"' if dashes else ""
        self.add(f'<polyline fill="none" stroke="{colour}" stroke-width="2"{style} points="{places}"/>')

    def dot(self, x, y, colour, name, is_filled=True):
        fill = colour if is_filled else "none"
        self.add(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{fill}" stroke="{colour}" stroke-width="2">'
            f"<title>{escape(name)}</title></circle>"
        )

    def whiskers(self, x, low, high, colour):
        self.line(x, low, x, high, colour=colour)
        for y in (low, high):
            self.line(x - 4, y, x + 4, y, colour=colour)

    def finish(self):
        body = "\n".join(self.body)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{self.height:.0f}" '
            f'viewBox="0 0 {WIDTH} {self.height:.0f}" role="img">\n<style>{STYLE}</style>\n'
            f'<rect class="ground" width="{WIDTH}" height="{self.height:.0f}"/>\n{body}\n</svg>\n'
        )


def wrap(text, width):
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return lines + [line] if line else lines


def ticks(most):
    """Round numbers from zero to at least `most`."""
    if not most > 0:
        return [0.0, 1.0]
    decade = 10 ** math.floor(math.log10(most / 5))
    step = next(f * decade for f in (1, 2, 5, 10) if most / (f * decade) <= 5)
    return [index * step for index in range(math.ceil(most / step - 1e-9) + 1)]


def number(value):
    return f"{value:.6g}"


def y_axis(picture, values, left, right, top, bottom):
    """Draws grid and numbers; gives the place of a value."""
    first, last = values[0], values[-1]

    def place(value):
        return bottom - (value - first) / (last - first) * (bottom - top)

    for value in values:
        picture.line(left, place(value), right, place(value))
        picture.text(left - 8, place(value) + 4, number(value), "small", "end")
    return place


def bench_reports():
    """The newest report of each model and machine, as (name, data)."""
    newest = {}
    for path in sorted(RESULTS.glob("*.md")):
        for block in re.findall(r"```json\n(.*?)\n```", path.read_text(), re.S):
            data = json.loads(block)
            if data.get("schema", "").startswith("flash-moe-bench/"):
                newest[data["model"]["name"], data["machine"]["cpu"]] = (path.stem, data)
    return list(newest.values())


def retention():
    """How much of the full speed is left with a part of the experts in memory."""
    reports = bench_reports()
    if not reports:
        return None
    lines = []
    for name, data in reports:
        contexts = sorted({c["length"] for b in data["budgets"] for c in b["cells"] if c["work"] == "decode"})
        for context in contexts:
            points = []
            for budget in data["budgets"]:
                for cell in budget["cells"]:
                    if cell["work"] == "decode" and cell["state"] == "warm" and cell["length"] == context:
                        points.append((budget["experts_in_memory"], cell["tokens_per_second"], cell["hit_rate"]))
            if points:
                lines.append((f"{data['model']['name']}, after {context} tokens", name, sorted(points, key=lambda p: p[0])))
    picture = Picture(
        470,
        "What is left of the speed when memory holds a part of the experts",
        "Warm decoding, median of the repeats with the least and the largest, as a share of the median with all experts in "
        "memory. Dashed: the share of experts found in memory. " + ", ".join(sorted({name for _, name, _ in lines})),
    )
    left, right, top, bottom = 70, WIDTH - 28, 130, 408
    x = lambda share: left + share * (right - left)
    tops = [p[1]["max"] / line[2][-1][1]["median"] for line in lines for p in line[2]]
    y = y_axis(picture, [20.0 * i for i in range(math.ceil(min(max(tops), 1.4) * 5 - 1e-9) + 1)], left, right, top, bottom)
    for share in range(0, 101, 20):
        picture.line(x(share / 100), bottom, x(share / 100), bottom + 5, "axis")
        picture.text(x(share / 100), bottom + 20, str(share), "small", "middle")
    picture.line(left, bottom, right, bottom, "axis")
    picture.text((left + right) / 2, bottom + 42, "routed experts in memory, %", "", "middle")
    picture.text(24, top - 14, "% of the speed with all in memory", "small")
    cut = lambda share: max(top, y(100 * share))
    legend = 24
    for (name, _, points), colour in zip(lines, COLOURS):
        full = points[-1][1]["median"]
        picture.path([(x(p[0]), y(100 * p[2])) for p in points], colour, "5 4")
        picture.path([(x(p[0]), cut(p[1]["median"] / full)) for p in points], colour)
        for share, speed, hits in points:
            picture.whiskers(x(share), cut(speed["min"] / full), cut(speed["max"] / full), colour)
            told = f"{name}: {100 * share:.0f} % in memory, {speed['median']:.1f} tokens/s, {100 * hits:.1f} % hits"
            picture.dot(x(share), cut(speed["median"] / full), colour, told)
        picture.dot(legend + 6, 86, colour, name)
        picture.text(legend + 18, 90, name)
        legend += 40 + 7.4 * len(name)
    return picture.finish()


def experiments():
    """The table of docs/experiments.md: (date, what, kept) a row; kept is False where the last column says no."""
    rows = []
    for line in (ROOT / "docs/experiments.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if re.match(r"\d{4}-\d\d-\d\d$", cells[0]) and len(cells) >= 5:
            rows.append((cells[0], cells[1], not re.match(r"no\b", cells[-1])))
    return rows


def progress():
    """Speeds in the order in which they were measured, what was kept and what was not, and all experiments as a strip."""
    path = RESULTS / "history.json"
    if not path.exists():
        return None
    series = json.loads(path.read_text())["series"]
    panel, rows = 240, experiments()
    n_kept = sum(kept for *_, kept in rows)
    per_row = 46
    strip = 22 * math.ceil(len(rows) / per_row) + 62
    picture = Picture(
        92 + panel * len(series) + strip,
        "Speed, experiment by experiment",
        "Filled green: kept. Hollow red: measured and left out. The line is the best that was kept; whiskers are the least "
        "and the largest run. A shared machine: steps of less than a third can be its neighbours.",
    )
    left, right = 70, WIDTH - 28
    for index, one in enumerate(series):
        top = 124 + index * panel
        bottom = top + panel - 94
        points = one["points"]
        picture.text(24, top - 24, f"{one['title']}, {one['unit']}", "head")
        values = [p.get("high", p["value"]) for p in points] + [p["value"] for p in one["peers"]]
        y = y_axis(picture, ticks(max(values)), left, right, top, bottom)
        picture.line(left, bottom, right, bottom, "axis")
        step = (right - left) / len(points)
        x = lambda place: left + (place + 0.5) * step
        for peer in one["peers"]:
            picture.line(left, y(peer["value"]), right, y(peer["value"]), colour=QUIET, dashes="6 4")
            picture.text(right, y(peer["value"]) - 6, f"{peer['name']} {number(peer['value'])}", "small", "end")
        best, line = 0, []
        for place, point in enumerate(points):
            before = best
            best = max(best, point["value"]) if point["kept"] else best
            if before:
                line.append((x(place), y(before)))
            if best:
                line.append((x(place), y(best)))
        picture.path(line, KEPT)
        for place, point in enumerate(points):
            colour = KEPT if point["kept"] else DISCARDED
            if "low" in point:
                picture.whiskers(x(place), y(point["low"]), y(point["high"]), colour)
            told = f"{point['date']}, {point['what']}: {number(point['value'])} {one['unit']} ({point['source']})"
            picture.dot(x(place), y(point["value"]), colour, told, point["kept"])
            for row, words in enumerate(wrap(point["what"], max(10, int(step / 6.6)))[:4]):
                picture.text(x(place), bottom + 17 + 14 * row, words, "small", "middle")
    top = 92 + panel * len(series) + 16
    picture.text(24, top, f"All {len(rows)} experiments of docs/experiments.md: {n_kept} kept or settled, {len(rows) - n_kept} left out", "head")
    for place, (date, what, kept) in enumerate(rows):
        x, y = 24 + 15.4 * (place % per_row), top + 14 + 22 * (place // per_row)
        colour = KEPT if kept else DISCARDED
        fill = colour if kept else "none"
        what = what if len(what) <= 160 else what[:157] + "..."
        picture.add(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="11" height="16" rx="2" fill="{fill}" stroke="{colour}" stroke-width="2">'
            f"<title>{escape(f'{date}: {what}')}</title></rect>"
        )
    return picture.finish()


def quality():
    """What fewer bits cost against the bytes of a token's experts, and the front: what nothing beats in both."""
    path = RESULTS / "quality.json"
    if not path.exists():
        return None
    points = sorted(json.loads(path.read_text()), key=lambda p: (p["bytes_per_token"], p["perplexity"]))
    if not points:
        return None
    picture = Picture(
        500,
        "Quality against bytes",
        "The change of perplexity on held-out text against the model as it was trained, with the intervals of paired documents, "
        "by the bytes of routed experts that a token uses. The line joins what nothing else beats in both. Lower left is better.",
    )
    methods = sorted({p["method"] for p in points if p["bits"] < 16})
    colours = dict(zip(methods, COLOURS))
    legend = 24
    for method in methods:
        picture.dot(legend + 6, 104, colours[method], method)
        picture.text(legend + 18, 108, method)
        legend += 40 + 7.4 * len(method)
    panels = [("mean", "all texts", 74, WIDTH / 2 - 12), ("taught", "written by a teacher", WIDTH / 2 + 62, WIDTH - 24)]
    top, bottom = 152, 432
    shown = [p for p in points if p["bits"] < 16]
    sizes = [p["bytes_per_token"] / 1e6 for p in shown]
    step = ticks(max(sizes) - min(sizes))[1]
    x_ticks = [index * step for index in range(math.floor(min(sizes) / step), math.ceil(max(sizes) / step - 1e-9) + 1)]
    changes_of = lambda source: [(p, [100 * (value - 1) for value in p["texts"][source]["change"]]) for p in shown]
    values = [change[0] for source, *_ in panels for _, change in changes_of(source)]
    # A change of nothing has no place on a scale of ratios; intervals that reach it end at the axis.
    decades = [f * 10**e for e in range(-2, 3) for f in (1, 2, 5)]
    first = max((tick for tick in decades if tick < max(min(values), 0.02)), default=decades[0])
    last = min(tick for tick in decades if tick > max(values))
    place = lambda value: bottom - math.log(max(value, first) / first) / math.log(last / first) * (bottom - top)
    for source, title, left, right in panels:
        picture.text(left, top - 18, f"{title}: change, %", "head")
        for tick in (tick for tick in decades if first <= tick <= last):
            picture.line(left, place(tick), right, place(tick))
            picture.text(left - 8, place(tick) + 4, number(tick), "small", "end")
        y = place
        x = lambda size, left=left, right=right: left + (size / 1e6 - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (right - left)
        for tick in x_ticks:
            picture.line(x(1e6 * tick), bottom, x(1e6 * tick), bottom + 5, "axis")
            picture.text(x(1e6 * tick), bottom + 20, number(tick), "small", "middle")
        picture.line(left, bottom, right, bottom, "axis")
        picture.text((left + right) / 2, bottom + 44, "MB of routed experts a token", "", "middle")
        front = []
        for point, change in changes_of(source):
            if not front or change[0] < front[-1][1][0]:
                front.append((point, change))
        picture.path([(x(p["bytes_per_token"]), y(change[0])) for p, change in front], QUIET)
        for point, (value, low, high) in changes_of(source):
            at, colour = (x(point["bytes_per_token"]), y(value)), colours[point["method"]]
            picture.whiskers(at[0], y(low), y(high), colour)
            told = (
                f"{point['model']}: {value:+.2f} % [{low:+.2f}, {high:+.2f}], perplexity {point['texts'][source]['perplexity'][0]:.3f} "
                f"at {point['bytes_per_token'] / 1e6:.3g} MB. {point['note']}"
            )
            picture.dot(*at, colour, told, any(point is p for p, _ in front))
            if point["method"] == "plain rounding":
                picture.text(at[0] + 9, at[1] - 8, f"{point['bits']} bit", "small")
    return picture.finish()


def main():
    is_check = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not is_check:
        sys.exit(__doc__)
    out = ROOT / "docs/pictures"
    out.mkdir(exist_ok=True)
    stale = []
    for name, draw in (("retention", retention), ("progress", progress), ("quality", quality)):
        path, text = out / f"{name}.svg", draw()
        if text is None:
            print(f"{name}: skipped, there are no results for it yet")
        elif is_check:
            if not path.exists() or path.read_text() != text:
                stale.append(name)
        else:
            path.write_text(text)
            print(path.relative_to(ROOT))
    if stale:
        sys.exit(f"not of today's results: {', '.join(stale)}; run python3 scripts/pictures.py")


main()
