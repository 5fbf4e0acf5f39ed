# SPDX-License-Identifier: MIT
import argparse
import html
import pathlib
import sys

from . import __doc__ as usage
from .curves import all_curves, contexts_plot, targets_of
from .heatmaps import all_heatmaps
from .page import page
from .plots import close
from .records import Failure, Records, read
from .rows import all_rows
from .style import Look, standalone, svg_of
from .tables import all_tables


def kinds():
    """What kind of text a document is, where that is known."""
    try:
        from get_text import KINDS
    except ImportError:
        return {}
    return KINDS


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def main(arguments):
    parser = argparse.ArgumentParser(prog="report", description=usage, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records")
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--context", type=int, help="tokens; default: the length with most results")
    parser.add_argument("--at", type=float, default=8, help="compression that heat maps show (8)")
    parser.add_argument("--progress-fd", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)

    everything = read(given.records)
    records = Records(everything, given.context)
    rows = all_rows(records)
    targets = targets_of(rows)
    if not any(row.compared for row in rows):
        raise Failure(f"{given.records}: no policy has run on all documents yet")
    at = min(targets, key=lambda target: abs(target - given.at), default=given.at)
    look = Look({row.label: row.family for row in rows if not row.exact})
    plots = all_curves(rows, look) + all_heatmaps(rows, records, kinds(), at)
    if len(records.contexts) > 1:
        lengths = {context: all_rows(Records(everything, context)) for context in records.contexts}
        plots += [plot for plot in [contexts_plot(lengths, look, at)] if plot]
    pipe = open(given.progress_fd, "w", buffering=1) if given.progress_fd else None
    for done, plot in enumerate(plots):
        if pipe:
            print("report", done, len(plots), sep="\t", file=pipe)
        plot.svg = svg_of(plot.figure, plot.name, html.escape(plot.title), html.escape(plot.text))
        write(given.directory / "plots" / f"{plot.name}.svg", standalone(plot.svg))
        plot.figure.savefig(given.directory / "plots" / f"{plot.name}.png", dpi=150, facecolor="white", metadata={"Software": None})
        close(plot.figure)
    tables = all_tables(rows, records)
    for table in tables:
        write(given.directory / "tables" / f"{table.name}.csv", table.csv())
        write(given.directory / "tables" / f"{table.name}.json", table.json())
    file = given.directory / "report.html"
    write(file, page(records, rows, plots, tables))
    if pipe:
        print("report", len(plots), len(plots), sep="\t", file=pipe)
    print(file)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (Failure, OSError) as failure:
        sys.exit(f"report: {failure}")
    except KeyboardInterrupt:
        sys.exit(130)
