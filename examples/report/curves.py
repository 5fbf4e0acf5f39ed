# SPDX-License-Identifier: MIT
"""Curves: what is lost, found and gained at every number of bytes."""
import math

from .plots import Plot, legend_below, powers_of_two
from .rows import pareto
from .style import COLOURS, plt

BYTES = "bytes of the exact f16 cache / bytes held"


def curves_of(rows):
    """{label: rows that were measured, by compression}"""
    out = {}
    for row in rows:
        if row.measured and not row.exact:
            out.setdefault(row.label, []).append(row)
    return {label: sorted(some, key=lambda row: row.compression) for label, some in out.items()}


def limits(rows):
    all_x = [row.compression for some in curves_of(rows).values() for row in some]
    return min(all_x), max(all_x)


def draw_curves(axis, rows, look, value, bars):
    """value(row): a number; bars(row): (down, up)."""
    for label, some in curves_of(rows).items():
        some = [row for row in some if math.isfinite(value(row))]
        if not some:
            continue
        error = [[bars(row)[i] for row in some] for i in (0, 1)] if bars else None
        axis.errorbar([row.compression for row in some], [value(row) for row in some], yerror_of(error), **look.line(label))
    powers_of_two(axis, *limits(rows))
    axis.set_xlabel(BYTES)


def yerror_of(error):
    return error if error and any(any(side) for side in error) else None


def draw_front(axis, rows, value, sign=1):
    """A band under what nothing beats. sign: -1 where large is good."""
    front = pareto(rows, lambda row: sign * value(row))
    if len(front) < 2:
        return
    axis.plot([r.compression for r in front], [value(r) for r in front], color=COLOURS["grid"][0], linewidth=7,
              solid_joinstyle="round", solid_capstyle="round", zorder=1, label="Pareto front")


def loss(measure):
    """Of a divergence, for a logarithmic axis: (value, bars)."""
    figure = lambda row: getattr(row, measure)  # noqa: E731
    value = lambda row: max(figure(row).mean, 1e-5)  # noqa: E731
    return value, lambda row: (min(figure(row).se, 0.9 * value(row)), figure(row).se)


def percent(measure):
    figure = lambda row: getattr(row, measure)  # noqa: E731
    return (lambda row: 100 * figure(row).mean), (lambda row: (100 * figure(row).se, 100 * figure(row).se))


def keys_share(row):
    return 100 * row.keys.share


def keys_bars(row):
    return 100 * (row.keys.share - row.keys.low), 100 * (row.keys.high - row.keys.share)


def log_axis(axis, values):
    axis.set_yscale("log")
    axis.set_ylim(min(values) / 1.6, max(values) * 1.6)
    low, high = axis.get_ylim()
    ticks = [base * 10.0**power for power in range(-6, 3) for base in (1, 3)]
    ticks = [tick for tick in ticks if low <= tick <= high]
    axis.set_yticks(ticks)
    axis.set_yticklabels([f"{tick:.5f}".rstrip("0").rstrip(".").replace("0.", ".", 1) if tick < 1 else f"{tick:g}"
                          for tick in ticks])
    axis.minorticks_off()


def draw_loss(axis, rows, look, measure, title):
    value, bars = loss(measure)
    draw_front(axis, rows, value)
    draw_curves(axis, rows, look, value, bars)
    log_axis(axis, [value(row) for some in curves_of(rows).values() for row in some])
    axis.set_ylabel("KL divergence from the exact cache, nats")
    axis.set_title(title, loc="left")


def best_at(rows, value, target, smallest=True):
    """The row nearest to a target of those within 5 % of its bytes that is best."""
    some = [r for r in rows if r.compared and 0.98 <= r.compression / target <= 1.08]
    return (min if smallest else max)(some, key=value, default=None)


def sentence_of(rows, value, what, targets, smallest=True, digits=4):
    parts = []
    for target in targets:
        row = best_at(rows, value, target, smallest)
        if row:
            parts.append(f"at {target:g}x {row.label} ({value(row):.{digits}f})")
    return f"{what}: {'; '.join(parts)}." if parts else ""


def targets_of(rows):
    return sorted({row.target for row in rows if row.target > 0 and not row.exact})


def main_plot(rows, look):
    figure, axes = plt.subplots(1, 2, figsize=(10.4, 5.6))
    draw_loss(axes[0], rows, look, "running_kld", "Text that goes on")
    value, bars = percent("copy_top1")
    draw_front(axes[1], rows, value, -1)
    draw_curves(axes[1], rows, look, value, bars)
    axes[1].set_ylim(None, 101.5)
    axes[1].set_ylabel("same first choice as the exact cache, %")
    axes[1].set_title("Copying earlier text", loc="left")
    legend_below(figure, axes)
    text = ("Left: KL divergence on running text against compression; right: accuracy of copying. Bars: one standard error over the "
            "documents. " + sentence_of(rows, loss("running_kld")[0], "Least divergence", targets_of(rows)) + " " +
            sentence_of(rows, value, "Best copies, in %", targets_of(rows), False, 1))
    return Plot("main", "What compression costs", text, figure)


def copy_plot(rows, look):
    figure, axes = plt.subplots(1, 2, figsize=(10.4, 5.6))
    draw_loss(axes[0], rows, look, "copy_kld", "Copying earlier text")
    value, bars = percent("running_top1")
    draw_curves(axes[1], rows, look, value, bars)
    axes[1].set_ylabel("same first choice as the exact cache, %")
    axes[1].set_title("Text that goes on", loc="left")
    legend_below(figure, axes)
    text = ("Left: KL divergence while copying; right: first choices on running text. Bars: one standard error over the documents. " +
            sentence_of(rows, loss("copy_kld")[0], "Least divergence while copying", targets_of(rows)))
    return Plot("copy", "The same two tasks, the other measures", text, figure)


def keys_plot(rows, look):
    figure, axis = plt.subplots(figsize=(10.4, 5.4))
    draw_curves(axis, rows, look, keys_share, keys_bars)
    axis.set_ylim(-3, 103)
    axis.set_ylabel("pass keys found, % of those the exact cache finds")
    legend_below(figure, [axis])
    most = max((row.keys.of for row in rows), default=0)
    text = (f"Share of pass keys found against compression, of {most} that the exact cache finds, question unseen. Bars: one standard "
            "error (Wilson). " + sentence_of([r for r in rows if r.measured and r.keys.of], keys_share, "Most found, in %",
                                              targets_of(rows), False, 0))
    return Plot("keys", "Pass keys", text, figure)


def speed_plot(rows, look):
    figure, axes = plt.subplots(1, 2, figsize=(10.4, 5.6))
    draw_curves(axes[0], rows, look, lambda row: row.tokens_per_s, None)
    exact = [row.tokens_per_s for row in rows if row.exact and math.isfinite(row.tokens_per_s)]
    if exact:
        axes[0].axhline(exact[0], color=COLOURS["ink"][0], linewidth=0.9, linestyle=(0, (2, 2)), label="Exact cache")
    axes[0].set_ylim(0, None)
    axes[0].set_ylabel("tokens decoded per second, one thread")
    axes[0].set_title("Decoding", loc="left")
    draw_curves(axes[1], rows, look, lambda row: max(row.compress_ms, 1), None)
    axes[1].set_yscale("log")
    axes[1].yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes[1].set_ylabel("compress() after the prompt, ms")
    axes[1].set_title("Compressing", loc="left")
    legend_below(figure, axes)
    fast = best_of(rows, lambda row: row.tokens_per_s)
    text = "Left: decoding speed against compression; right: time of compress(), looking at queries before it included. One run each."
    if fast and exact:
        text += (f" The exact cache decodes {exact[0]:.1f} tokens/s, the fastest row {fast.tokens_per_s:.1f} "
                 f"({fast.label}, {fast.compression:.1f}x).")
    return Plot("speed", "Speed against bytes", text, figure)


def best_of(rows, value):
    return max((r for r in rows if r.compared and math.isfinite(value(r))), key=value, default=None)


def contexts_plot(by_context, look, at):
    """by_context: {tokens: rows}. Only labels that stand at every length can be followed."""
    found = {}
    for context, rows in by_context.items():
        for row in rows:
            if row.measured and row.target == at and row.label in look.families:
                found.setdefault(row.label, {})[context] = row
    found = {label: rows for label, rows in found.items() if len(rows) == len(by_context)}
    if not found:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(10.4, 5.6))
    for axis, measure, title in ((axes[0], "running_kld", "Text that goes on"), (axes[1], "copy_kld", "Copying earlier text")):
        value, bars = loss(measure)
        for label in (label for label in look.families if label in found):
            some = [found[label][context] for context in sorted(by_context)]
            error = [[bars(row)[i] for row in some] for i in (0, 1)]
            axis.errorbar(sorted(by_context), [value(row) for row in some], yerror_of(error), **look.line(label))
        log_axis(axis, [value(row) for rows in found.values() for row in rows.values()])
        axis.set_xscale("log", base=2)
        axis.set_xticks(sorted(by_context))
        axis.set_xticklabels([str(context) for context in sorted(by_context)])
        axis.minorticks_off()
        axis.set_xlabel("tokens of the context")
        axis.set_ylabel("KL divergence from the exact cache, nats")
        axis.set_title(title, loc="left")
    legend_below(figure, axes)
    return Plot("contexts", f"Longer and shorter contexts, {at:g}x",
                "KL divergence at one compression against the length of the context. Bars: one standard error over the documents.", figure)


def all_curves(rows, look):
    out = [main_plot(rows, look), copy_plot(rows, look)]
    if any(row.keys.of for row in rows if row.measured and not row.exact):
        out.append(keys_plot(rows, look))
    if any(math.isfinite(row.tokens_per_s) for row in rows if row.measured):
        out.append(speed_plot(rows, look))
    return out
