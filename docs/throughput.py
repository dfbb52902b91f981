#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Draws docs/throughput.svg from the figures of the table in README.md.

Run docs/throughput.py after a change of the figures: it rewrites the SVG beside it.
"""

import pathlib

# Workload, what it does, then (median, least, greatest) in MB/s for stock and for
# asyncpager. None: the measurement has no range (two runs).
ROWS = [
    ("cold-stream", "1 client, 1 cold file", (26.8, 26, 28), (113.3, 110, 114)),
    ("deep", "1 client, beyond 2 indirect levels", (26.5, 26, 27), (104.8, 101, 106)),
    ("fragmented", "1 client, extents of 64 KiB", (7.3, 7, 8), (110.0, 106, 110)),
    ("shared", "4 clients, the same 4 cold files", (93.4, 91, 96), (343.5, 323, 364)),
    ("shared, SF_NODISKIO", "4 clients at 56 MB/s each", (112, None, None), (218, None, None)),
]
TITLE = "sendfile(2) from a disk with 30 ms latency: MB/s, median"
FOOT = [
    "FreeBSD 14.2-BETA1 in QEMU (TCG, 2 emulated CPUs), gnop(8) 30 ms, 128 MiB files, at most 112 MB/s",
    "a client unless stated. Lines at the end of a bar: least to greatest run.",
]

LEFT, SCALE, BAR, ROW, TOP = 250, 1.05, 17, 62, 84
WIDTH, STOCK, OURS = 780, "#9aa4b1", "#0a7c6e"


def text(x, y, words, size=13, weight=400, fill="#1f2933", anchor="start"):
    """A line of text."""
    words = words.replace("&", "&amp;").replace("<", "&lt;")
    return (f'<text x="{x:g}" y="{y:g}" font-size="{size}" font-weight="{weight}" '
            f'fill="{fill}" text-anchor="{anchor}">{words}</text>')


def bar(y, figures, color, label, weight):
    """A bar with its range and its figure."""
    median, least, greatest = figures
    end, middle = LEFT + median * SCALE, y + BAR / 2
    out = [f'<rect x="{LEFT}" y="{y}" width="{median * SCALE:.1f}" height="{BAR}" fill="{color}"/>']
    if least is not None:
        low, high = LEFT + least * SCALE, LEFT + greatest * SCALE
        out.append(f'<path d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 4}v8'
                   f'M{high:.1f} {middle - 4}v8" stroke="#1f2933" fill="none"/>')
        end = max(end, high)
    out.append(text(round(end + 8, 1), y + BAR - 4, label, 13, weight))
    return out


def draw():
    """The picture, as SVG."""
    height = TOP + ROW * len(ROWS) + 52
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="Helvetica, Arial, sans-serif" role="img">',
        f"<title>{TITLE}</title>",
        f'<rect width="{WIDTH}" height="{height}" rx="6" fill="#ffffff"/>',
        text(24, 34, TITLE, 17, 600),
    ]
    for x, color, name in ((24, STOCK, "stock"), (104, OURS, "asyncpager")):
        out += [f'<rect x="{x}" y="49" width="13" height="13" fill="{color}"/>', text(x + 20, 60, name)]
    for i, (name, what, stock, ours) in enumerate(ROWS):
        y = TOP + ROW * i
        out += [text(LEFT - 14, y + 15, name, 14, 600, anchor="end"),
                text(LEFT - 14, y + 33, what, 11.5, fill="#52606d", anchor="end")]
        ratio = format(ours[0] / stock[0], ".1f" if ours[0] < 10 * stock[0] else ".0f")
        out += bar(y, stock, STOCK, f"{stock[0]}", 400)
        out += bar(y + BAR + 3, ours, OURS, f"{ours[0]} ({ratio} ×)", 600)
    bottom = TOP + ROW * len(ROWS)
    out.append(f'<path d="M{LEFT} {TOP - 6}V{bottom - 16}" stroke="#1f2933"/>')
    for i, line in enumerate(FOOT):
        out.append(text(24, bottom + 14 + 16 * i, line, 11.5, fill="#52606d"))
    return "\n".join([*out, "</svg>", ""])


if __name__ == "__main__":
    pathlib.Path(__file__).with_suffix(".svg").write_text(draw(), encoding="utf-8")
