# SPDX-License-Identifier: MIT
"""How plots look: a palette that the colour-blind can tell apart, markers that differ beside it, light and dark."""
import io
import re
from collections import Counter

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

# name: on light, on dark. The first of each is what matplotlib draws with; in SVG it becomes a variable of the page.
COLOURS = {
    "ink": ("#1b1c1f", "#ececf0"),
    "paper": ("#ffffff", "#17181c"),
    "grid": ("#dcdde2", "#3a3c44"),
    "s1": ("#0072b2", "#58b0e8"),
    "s2": ("#d55e00", "#ff9152"),
    "s3": ("#00805f", "#35d0a0"),
    "s4": ("#a8477f", "#f0a0cc"),
    "s5": ("#7a6500", "#f0e442"),
    "s6": ("#5b3fa8", "#b8a2ff"),
    "s7": ("#168797", "#6fe3f0"),
    "s8": ("#5d5f66", "#b9bbc2"),
}
SERIES = [f"s{i}" for i in range(1, 9)]
MARKERS = "osD^vP*Xph<>d"
DASHES = {"rows": (0, (1.2, 1.6)), "budget": (0, (4, 1.5, 1, 1.5)), "codec": (0, (4, 2)), "composition": "solid",
          "bound": (0, (8, 2))}
FAMILIES = {
    "rows": "rows of 16 bits, chosen by a score",
    "budget": "rows of 16 bits, with a budget for layers or heads",
    "codec": "all rows, coded",
    "composition": "rows, budget and codec together",
    "bound": "no method: rows by the attention that is still to come, and the least squared error that codes can have",
}
SEQUENTIAL = "cividis"  # made for colour-blind readers; light is much

plt.rcParams.update({
    "svg.fonttype": "none",  # text stays text
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.edgecolor": COLOURS["ink"][0],
    "axes.labelcolor": COLOURS["ink"][0],
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": COLOURS["grid"][0],
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "text.color": COLOURS["ink"][0],
    "xtick.color": COLOURS["ink"][0],
    "ytick.color": COLOURS["ink"][0],
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
})


class Look:
    """Colour, marker and line of every label, the same in all plots."""

    def __init__(self, families):
        """families: {label: family}, in the order of the legend."""
        self.families = families
        self.number = {}
        # Compositions come first: they get the colours that are told apart best.
        order = ["composition", "codec", "budget", "rows", "bound"]
        for i, label in enumerate(sorted(families, key=lambda label: order.index(families[label]))):
            self.number[label] = i

    def colour(self, label):
        if self.families[label] == "bound":
            return COLOURS["ink"][0]
        return COLOURS[SERIES[self.number[label] % len(SERIES)]][0]

    def line(self, label):
        strong = self.families[label] == "composition"
        return {
            "color": self.colour(label),
            "marker": MARKERS[self.number[label] % len(MARKERS)],
            "linestyle": DASHES[self.families[label]],
            "markerfacecolor": "none" if self.families[label] == "bound" else None,
            "linewidth": 2.0 if strong else 1.2,
            "markersize": 6.5 if strong else 5.5,
            "markeredgewidth": 1.0 if self.families[label] == "bound" else 0,
            "elinewidth": 1.0,
            "capsize": 2.2,
            "zorder": 4 if strong else 3,
            "label": label,
        }


def variables(dark):
    return "".join(f"--{name}:{pair[dark]};" for name, pair in COLOURS.items())


STYLE = (f":root{{{variables(0)}}}@media (prefers-color-scheme:dark){{:root{{{variables(1)}}}}}"
         ".plot text{font-family:'DejaVu Sans',Verdana,Geneva,sans-serif}")


def svg_of(figure, name, title, description):
    """The figure as SVG text whose colours are variables; ids carry the name, so that many fit into one page."""
    text = io.StringIO()
    with plt.rc_context({"svg.hashsalt": name}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg"):]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.S)
    seen = Counter()

    def unique(found):
        seen[found[1]] += 1  # equal pictures have equal ids; nothing refers to them
        return f'id="{name}-{found[1]}{"" if seen[found[1]] == 1 else f"-{seen[found[1]]}"}"'

    svg = re.sub(r"\bid=\"([^\"]+)\"", unique, svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r"href=\"#([^\"]+)\"", rf'href="#{name}-\1"', svg)
    svg = svg.replace("#000000", "var(--ink)")
    for variable, (light, _) in COLOURS.items():
        svg = svg.replace(light, f"var(--{variable})")
    # The page says which font; only the size is the plot's.
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    head = re.match(r"<svg[^>]*>", svg)[0]
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', head)
    opening = (f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" class="plot" role="img" '
               f'viewBox="0 0 {size[1]} {size[2]}" width="{float(size[1]) * 4 / 3:.0f}" fill="var(--ink)" '
               f'aria-labelledby="{name}-title {name}-description">'
               f'<title id="{name}-title">{title}</title><desc id="{name}-description">{description}</desc>')
    return opening + svg[len(head):]


def standalone(svg):
    """With its colours and paper, for a file of its own."""
    at = svg.index("</desc>") + len("</desc>")
    return (f'<?xml version="1.0" encoding="utf-8"?>\n{svg[:at]}<style>{STYLE}</style>'
            f'<rect width="100%" height="100%" fill="var(--paper)"/>{svg[at:]}')
