# SPDX-License-Identifier: MIT
"""Tables, each as CSV, as JSON and as HTML; full precision in the files, what can be read on the page."""
import base64
import csv
import html
import io
import json
import math
from dataclasses import dataclass

from .curves import loss, percent
from .rows import pareto


@dataclass
class Column:
    name: str  # in files
    title: str = ""  # on the page; none: only in files
    show: str = "{}"  # how


@dataclass
class Table:
    name: str
    title: str
    columns: list
    lines: list  # of dictionaries, by name
    note: str = ""
    folded: bool = False

    def csv(self):
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(column.name for column in self.columns)
        for line in self.lines:
            writer.writerow(plain(line.get(column.name)) for column in self.columns)
        return out.getvalue()

    def json(self):
        return json.dumps([{column.name: plain(line.get(column.name)) for column in self.columns} for line in self.lines],
                          indent=1) + "\n"

    def kind(self, column):
        numbers = any(isinstance(plain(line.get(column.name)), (int, float)) for line in self.lines)
        return ' class="number"' if numbers else ""

    def html(self):
        shown = [column for column in self.columns if column.title]
        head = "".join(f'<th scope="col"{self.kind(column)}><button type="button">{html.escape(column.title)}</button></th>'
                       for column in shown)
        body = []
        for line in self.lines:
            cells = []
            for i, column in enumerate(shown):
                value = plain(line.get(column.name))
                text = "" if value is None else html.escape(column.show.format(value))
                tag = 'th scope="row"' if i == 0 else f"td{self.kind(column)}"
                sort = f' data-value="{value}"' if isinstance(value, (int, float)) else ""
                cells.append(f"<{tag}{sort}>{text}</{tag.split()[0]}>")
            if line.get("note") and len(shown) > 2:  # no figures: the words take their place
                cells[1:] = [f'<td colspan="{len(shown) - 1}">{html.escape(line["note"])}</td>']
            mark = ' class="front"' if line.get("pareto") else ""
            body.append(f"<tr{mark}>{''.join(cells)}</tr>")
        links = " ".join(f'<a download="{self.name}.{kind}" href="data:{mime};base64,{packed(text)}">{kind.upper()}</a>'
                         for kind, mime, text in (("csv", "text/csv", self.csv()), ("json", "application/json", self.json())))
        caption = f"<caption>{html.escape(self.title)} <span class=files>{links}</span></caption>"
        table = (f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(self.title)}"><table id="table-{self.name}">'
                 f"{caption}<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>")
        note = f"<p class=note>{html.escape(self.note)}</p>" if self.note else ""
        if self.folded:
            return f"<details><summary>{html.escape(self.title)} ({len(self.lines)} lines)</summary>{table}{note}</details>"
        return table + note


def plain(value):
    return None if isinstance(value, float) and not math.isfinite(value) else value


def packed(text):
    return base64.b64encode(text.encode()).decode()


COLUMNS = [
    Column("label", "policy"), Column("family"), Column("target"), Column("compression", "x", "{:.2f}"), Column("bytes"),
    Column("megabytes", "MB", "{:.1f}"), Column("peak_bytes"), Column("peak_megabytes", "peak MB", "{:.1f}"),
    Column("kept_percent", "kept %", "{:.1f}"),
    Column("kld", "KLD", "{:.4f}"), Column("kld_se", "±", "{:.4f}"), Column("kld_se_tokens"),
    Column("top1_percent", "top-1 %", "{:.1f}"), Column("nll_delta", "dNLL", "{:+.4f}"),
    Column("copy_kld", "copy KLD", "{:.4f}"), Column("copy_kld_se", "±", "{:.4f}"), Column("copy_kld_se_tokens"),
    Column("copy_top1_percent", "copy top-1 %", "{:.1f}"), Column("copy_accuracy_percent", "copy right %", "{:.1f}"),
    Column("keys_percent", "keys %", "{:.0f}"), Column("keys_se", "±", "{:.0f}"), Column("keys_n", "of", "{}"),
    Column("long_key_digits_percent", "long key digits %", "{:.0f}"), Column("long_key_digits_n"),
    Column("compress_ms", "compress ms", "{:.0f}"), Column("tokens_per_s", "tokens/s", "{:.1f}"), Column("note"),
    Column("policy", "in text form"), Column("pareto"),
]


def line_of(row, front):
    label = f"{row.label}, {row.policy}" if not row.target and not row.exact else row.label
    out = {"label": label, "family": row.family, "target": row.target or None, "policy": row.policy, "note": row.note,
           "keys_percent": 100 * row.keys.share, "keys_se": 50 * (row.keys.high - row.keys.low) if row.keys.of else None,
           "keys_n": row.keys.of or None, "long_key_digits_percent": 100 * row.long_keys.share,
           "long_key_digits_n": row.long_keys.of or None, "compress_ms": row.compress_ms, "tokens_per_s": row.tokens_per_s,
           "pareto": row in front}
    if row.measured:
        out.update({
            "compression": row.compression, "bytes": round(row.bytes), "megabytes": row.bytes / 1e6,
            "peak_bytes": round(row.peak_bytes), "peak_megabytes": row.peak_bytes / 1e6, "kept_percent": 100 * row.kept,
            "kld": row.running_kld.mean, "kld_se": row.running_kld.se, "kld_se_tokens": row.running_kld.se_tokens,
            "top1_percent": 100 * row.running_top1.mean, "nll_delta": row.running_nll_delta.mean,
            "copy_kld": row.copy_kld.mean, "copy_kld_se": row.copy_kld.se, "copy_kld_se_tokens": row.copy_kld.se_tokens,
            "copy_top1_percent": 100 * row.copy_top1.mean, "copy_accuracy_percent": 100 * row.copy_accuracy.mean,
        })
    return out


def all_tables(rows, records):
    front = pareto(rows, loss("running_kld")[0])
    copies = pareto(rows, lambda row: -percent("copy_top1")[0](row))
    targets = sorted({row.target for row in rows if row.target > 0 and not row.exact})
    out = []
    for target in [0, *targets]:
        some = [row for row in rows if not row.exact and row.target == target]
        some.sort(key=lambda row: (not row.measured, row.running_kld.mean if row.measured else 0))
        if target == 0:
            some = [row for row in rows if row.exact] + some
        if some:
            name, title = (f"rows_{target:g}x", f"At {target:g}x") if target else ("rows_codecs", "Exact, codecs alone, and their bound")
            out.append(Table(name, title, COLUMNS, [line_of(row, front) for row in some]))
    chosen = list(dict.fromkeys(sorted(front + copies, key=lambda row: row.compression)))
    out.append(Table("pareto", "What no other row beats in bytes and loss at once",
                     COLUMNS, [{**line_of(row, front), "pareto": row in front} for row in chosen],
                     "Marked: on running text; the others: on copies."))
    out.append(Table("all_rows", "All rows in one table", COLUMNS, [line_of(row, front) for row in rows], folded=True))
    out += [documents_table(rows), layers_table(records), kept_heads_table(rows, records)]
    return [table for table in out if table.lines]


def documents_table(rows):
    lines = []
    for row in rows:
        if not row.measured:
            continue
        for part in row.parts:
            line = {"label": row.label, "document": part["document"], "policy": row.policy, "target": row.target or None,
                    "compression": part["bytes_exact"] / part["bytes"], "bytes": part["bytes"], "peak_bytes": part["peak_bytes"],
                    "fraction": part["fraction"]}
            for task, prefix in (("running", ""), ("copy", "copy_")):
                for measure, figure in part[task].items():
                    line[prefix + measure], line[prefix + measure + "_se"] = figure["mean"], figure["se"]
            lines.append(line)
    columns = [Column("label", "policy"), Column("document", "document"), Column("target"), Column("compression", "x", "{:.2f}"),
               Column("bytes"), Column("peak_bytes"), Column("fraction")]
    for prefix, title in (("", ""), ("copy_", "copy ")):
        for measure, name in (("kld", "KLD"), ("top1", "top-1"), ("nll_delta", "dNLL"), ("accuracy", "right")):
            columns += [Column(prefix + measure, title + name, "{:.4f}"), Column(prefix + measure + "_se", "±", "{:.4f}")]
    return Table("documents", "Each document", columns + [Column("policy")], lines, folded=True)


def layers_table(records):
    names = {r["text"]: r["document"] for r in records.texts()}
    lines = []
    for record in records.of("layers"):
        heads = record["query_heads"]
        for layer, lmba in enumerate(record["lmba"]):
            entropy = record["query_entropy"][layer * heads:(layer + 1) * heads]
            lines.append({"document": names.get(record["text"], ""), "layer": layer, "query_entropy": sum(entropy) / heads,
                          "query_entropy_min": min(entropy), "query_entropy_max": max(entropy), "lmba": lmba,
                          "uncertainty": record["uncertainty"][layer], "lmbo": record["lmbo"][layer]})
    columns = [Column("document", "document"), Column("layer", "layer"), Column("query_entropy", "entropy of queries", "{:.3f}"),
               Column("query_entropy_min", "smallest head", "{:.3f}"), Column("query_entropy_max", "largest head", "{:.3f}"),
               Column("lmba", "LMBA", "{:.1f}"), Column("uncertainty", "U", "{:.4f}"), Column("lmbo", "LMBO", "{:.1f}")]
    return Table("layers", "What every layer needs", columns, lines, folded=True)


def kept_heads_table(rows, records):
    heads = records.texts()[0]["kv_heads"]
    lines = []
    for row in rows:
        if not row.measured or row.exact or row.kept > 0.999:
            continue
        for i in range(len(row.parts[0]["kept_heads"])):
            kept = sum(part["kept_heads"][i] for part in row.parts) / len(row.parts)
            lines.append({"label": row.label, "policy": row.policy, "target": row.target, "layer": i // heads, "head": i % heads,
                          "kept": kept, "kept_percent": 100 * kept / records.context})
    columns = [Column("label"), Column("policy"), Column("target"), Column("layer"), Column("head"), Column("kept"),
               Column("kept_percent")]
    return Table("kept_heads", "Entries kept by every layer and head", columns, lines)
