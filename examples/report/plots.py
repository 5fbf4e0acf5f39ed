# SPDX-License-Identifier: MIT
"""What all plots share: a name, a title, a sentence that stands for the picture, and the figure."""
from dataclasses import dataclass, field
from typing import Any

from .style import plt


@dataclass
class Plot:
    name: str  # of its files
    title: str
    text: str  # what it shows, for those who do not see it, too
    figure: Any = field(repr=False)
    svg: str = ""


def legend_below(figure, axes, top=0.0, columns=4):
    """One legend for all axes, under them, each label once."""
    entries = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels()):
            entries.setdefault(label, handle)
    rows = -(-len(entries) // columns)
    height = figure.get_figheight()
    bottom = (0.19 * rows + 0.08) / height
    figure.tight_layout(rect=(0, bottom, 1, 1 - top), w_pad=2.5)
    figure.legend(entries.values(), entries.keys(), loc="lower center", ncol=columns, fontsize=8.5, handlelength=3.2,
                  columnspacing=1.6, bbox_to_anchor=(0.5, 0.0), borderaxespad=0.2)


def powers_of_two(axis, low, high):
    """A compression axis: 2x, 4x, ... as they are written."""
    axis.set_xscale("log", base=2)
    ticks = [2.0**i for i in range(0, 12) if low / 1.05 <= 2.0**i <= high * 1.05]
    axis.set_xticks(ticks)
    axis.set_xticklabels([f"{tick:.0f}x" for tick in ticks])
    axis.minorticks_off()


def close(figure):
    plt.close(figure)
