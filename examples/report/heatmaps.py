# SPDX-License-Identifier: MIT
"""Heat maps: what stays of every head and position, what layers need, where documents differ."""
import math

import numpy as np

from .plots import Plot
from .style import SEQUENTIAL, plt


def mean_over(parts, name, shape):
    return np.mean([np.reshape(part[name], shape) for part in parts], axis=0)


def panels(rows, at):
    """Rows at one compression that let entries go: one panel each."""
    return [row for row in rows if row.measured and row.target == at and row.kept < 0.999]


def grid(count, columns, width, height):
    lines = -(-count // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(width, height * lines + 0.7), squeeze=False, sharex=True, sharey=True)
    high = figure.get_figheight()
    figure.subplots_adjust(left=0.055, right=0.945, top=1 - 0.42 / high, bottom=0.5 / high)
    for axis in axes.flat:
        axis.grid(False)
        axis.set_visible(False)
    for axis in list(axes.flat)[:count]:
        axis.set_visible(True)
    # Axes that are hidden would have carried the labels of those above them.
    for axis in list(axes.flat)[max(0, count - columns):count]:
        axis.tick_params(labelbottom=True)
    return figure, axes


def wrap(label, width=22):
    words, lines = label.split(" "), [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + word
    return "\n".join(lines)


def scale(figure, axes, image, label):
    bar = figure.colorbar(image, ax=axes, fraction=0.025, pad=0.02, aspect=30)
    bar.set_label(label)
    bar.outline.set_visible(False)


def heads_plot(rows, at, layers, heads, context):
    rows = panels(rows, at)
    figure, axes = grid(len(rows), 7, 10.4, 2.6)
    figure.subplots_adjust(hspace=0.3)
    image = None
    spread = []
    for row, axis in zip(rows, axes.flat):
        share = 100 * mean_over(row.parts, "kept_heads", (layers, heads)) / context
        image = axis.imshow(share, aspect="auto", cmap=SEQUENTIAL, vmin=0, vmax=100, interpolation="nearest")
        axis.set_title(wrap(row.label, 19), fontsize=8)
        axis.set_xticks(range(heads))
        spread.append(f"{row.label} {share.min():.0f} to {share.max():.0f} %")
    for line in axes:
        line[0].set_ylabel("layer")
    for axis in list(axes.flat)[max(0, len(rows) - axes.shape[1]):len(rows)]:
        axis.set_xlabel("KV head")
    scale(figure, axes, image, "entries kept, %")
    return Plot("kept_heads", f"Entries kept by every layer and head, {at:g}x",
                f"Share of the {context} entries that stays, mean of the documents. Smallest and largest head: " +
                "; ".join(spread) + ".", figure)


def positions_plot(rows, at, layers, heads, context):
    rows = panels(rows, at)
    figure, axes = grid(len(rows), 4, 10.4, 1.9)
    figure.subplots_adjust(hspace=0.42)
    image = None
    for row, axis in zip(rows, axes.flat):
        counts = mean_over(row.parts, "kept_positions", (layers, -1))
        share = 100 * counts / (context / counts.shape[1] * heads)
        image = axis.imshow(share, aspect="auto", cmap=SEQUENTIAL, vmin=0, vmax=100, interpolation="nearest",
                            extent=(0, context, layers - 0.5, -0.5))
        axis.set_title(wrap(row.label, 30), fontsize=8)
        axis.set_xticks([0, context // 2, context])
    for line in axes:
        line[0].set_ylabel("layer")
    for axis in list(axes.flat)[max(0, len(rows) - axes.shape[1]):len(rows)]:
        axis.set_xlabel("position")
    scale(figure, axes, image, "entries kept, %")
    return Plot("kept_positions", f"Positions kept by every layer, {at:g}x",
                f"Share of entries that stays in each of 64 parts of the {context} positions, heads together, mean of the documents: "
                "bright at the right are the newest rows, a bright column is text that all layers keep.", figure)


def layers_plot(records):
    found = records.of("layers")
    if not found:
        return None
    names = {r["text"]: r["document"] for r in records.texts()}
    heads = found[0]["query_heads"]
    figure, axes = plt.subplots(1, 3, figsize=(10.4, 4.6), gridspec_kw={"width_ratios": [1.1, 1, 1]})
    entropy = np.mean([np.reshape(r["query_entropy"], (-1, heads)) for r in found], axis=0)
    layers = len(entropy)
    image = axes[0].imshow(entropy, aspect="auto", cmap=SEQUENTIAL, interpolation="nearest")
    axes[0].set_xticks(range(heads))
    axes[0].set_xlabel("query head")
    axes[0].set_title("Entropy of queries, nats", loc="left")
    figure.colorbar(image, ax=axes[0], fraction=0.05).outline.set_visible(False)
    for axis, name, title in ((axes[1], "uncertainty", "Uncertainty x layers"), (axes[2], "lmbo", "Keys for the output (LMBO)")):
        table = np.array([r[name] for r in found]).T * (layers if name == "uncertainty" else 1)
        image = axis.imshow(table, aspect="auto", cmap=SEQUENTIAL, interpolation="nearest")
        axis.set_xticks(range(len(found)))
        axis.set_xticklabels([names.get(r["text"], "") for r in found], rotation=45, ha="right")
        axis.set_title(title, loc="left")
        figure.colorbar(image, ax=axis, fraction=0.05).outline.set_visible(False)
    for axis in axes:
        axis.grid(False)
        axis.set_ylabel("layer")
    figure.tight_layout()
    means = entropy.mean(axis=1)
    uncertainty = layers * np.mean([r["uncertainty"] for r in found], axis=0)
    return Plot("layers", "What layers need",
                "Truncated matrix entropy of the queries of every head (what UNComp and entropy weights divide budgets by), the "
                "uncertainty of every layer (its share of all LMBA, ZigZagKV; 1 is the mean), and the keys that keep a layer's output at "
                f"a cosine of {found[0]['settings']['similarity']:g}. Entropy is largest in layer {means.argmax()} ({means.max():.2f} nats), "
                f"uncertainty in layer {uncertainty.argmax()} ({uncertainty.max():.1f} times the mean).", figure)


def table_plot(name, title, text, rows, columns, cells, logarithmic=False, digits=3):
    """A heat map with its numbers in it."""
    values = np.array(cells, dtype=float)
    shown = np.log10(np.maximum(values, 1e-5)) if logarithmic else values
    figure, axis = plt.subplots(figsize=(10.4, 0.34 * len(rows) + 1.0))
    axis.grid(False)
    image = axis.imshow(shown, aspect="auto", cmap=SEQUENTIAL + ("_r" if logarithmic else ""), interpolation="nearest")
    axis.set_xticks(range(len(columns)))
    axis.set_xticklabels(columns)
    axis.xaxis.tick_top()
    axis.set_yticks(range(len(rows)))
    axis.set_yticklabels(rows)
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            if not math.isfinite(value):
                continue
            light = sum(image.cmap(image.norm(shown[y, x]))[:3]) > 1.5
            # Not the ink of the page: this stands on the colours of the map, light or dark.
            axis.text(x, y, f"{value:.{digits}f}", ha="center", va="center", fontsize=8.5,
                      color="#010101" if light else "#fefefe")
    figure.tight_layout()
    return Plot(name, title, text, figure)


def documents_plot(rows, documents, kinds, at):
    rows = [row for row in rows if row.measured and not row.exact and row.target in (at, 0)]
    rows.sort(key=lambda row: row.running_kld.mean)
    cells = [[part["running"]["kld"]["mean"] for part in row.parts] for row in rows]
    names = [f"{row.label} ({row.compression:.1f}x)" for row in rows]
    columns = [f"{name}\n{kinds.get(name, '')}" for name in documents]
    return table_plot("documents", f"Each document, {at:g}x, and codecs alone",
                      "KL divergence on running text, nats; the best policies on top.", names, columns, cells, True, 4)


def depth_plot(rows, at):
    rows = [row for row in rows if row.measured and not row.exact and row.target == at and row.key_parts]
    if not rows:
        return None
    rows.sort(key=lambda row: -row.keys.share)
    cells = []
    for row in rows:
        found, of = np.zeros(5), np.zeros(5)
        for part in row.key_parts:
            for i, points in enumerate(part["points"]):
                if points is not None:
                    depth = i * 5 // len(part["points"])
                    found[depth] += points
                    of[depth] += 1
        with np.errstate(invalid="ignore"):
            cells.append(100 * found / of)
    return table_plot("key_depths", f"Pass keys by their place in the text, {at:g}x",
                      "Share found, in %, in each fifth of the text, oldest first; the most on top.",
                      [row.label for row in rows], [f"{20 * i} to {20 * i + 20} %" for i in range(5)], cells, digits=0)


def all_heatmaps(rows, records, kinds, at):
    text = records.texts()[0]
    layers, heads = text["layers"], text["kv_heads"]
    out = []
    if panels(rows, at):
        out += [heads_plot(rows, at, layers, heads, records.context), positions_plot(rows, at, layers, heads, records.context)]
    out.append(layers_plot(records))
    if any(row.measured and not row.exact for row in rows):
        out.append(documents_plot(rows, records.documents(), kinds, at))
    out.append(depth_plot(rows, at))
    return [plot for plot in out if plot]
