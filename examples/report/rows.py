# SPDX-License-Identifier: MIT
"""One row a policy and compression: everything that was measured of it."""
import math

from .pooling import Figure, Share


class Row:
    """A policy at a compression, over all documents."""

    def __init__(self, records, documents):
        first = records[0]
        self.policy, self.label, self.family = first["policy"], first["label"], first["family"]
        self.target = first["target"]
        by_name = {r["document"]: r for r in records}
        self.parts = [by_name[name] for name in documents if name in by_name]
        notes = [r["note"] for r in self.parts if "note" in r]
        self.note = notes[0] if notes else ""
        if len(self.parts) < len(documents):
            self.note = f"{len(self.parts)} of {len(documents)} documents so far"
        self.keys = self.long_keys = Share(0, 0)
        self.key_parts = []
        self.compress_ms = self.tokens_per_s = math.nan
        if not self.measured:
            return
        total = {name: sum(part[name] for part in self.parts) for name in ("bytes", "bytes_exact", "peak_bytes", "kept_share")}
        count = len(self.parts)
        self.compression = total["bytes_exact"] / total["bytes"]
        self.bytes, self.peak_bytes = total["bytes"] / count, total["peak_bytes"] / count
        self.bytes_exact = total["bytes_exact"] / count
        self.kept = total["kept_share"] / count
        for task in ("running", "copy"):
            for measure in ("kld", "top1", "nll_delta", "accuracy"):
                setattr(self, f"{task}_{measure}", Figure([part[task][measure] for part in self.parts]))

    @property
    def measured(self):
        return not self.note

    @property
    def exact(self):
        return self.family == "exact"

    @property
    def compared(self):
        """A method with figures: neither the exact cache nor a bound."""
        return self.measured and self.family not in ("exact", "bound")

    def add_keys(self, records):
        self.key_parts = [r for r in records if "points" in r]
        self.keys = Share(sum(r["found"] for r in self.key_parts), sum(r["of"] for r in self.key_parts))


def all_rows(records):
    """In the order in which the sweep names policies; a policy's compressions ascend."""
    documents = records.documents()
    grouped = {}
    for unit in ("document", "keys", "long_keys", "times"):
        for record in records.of(unit):
            grouped.setdefault((record["policy"], record["target"]), {}).setdefault(unit, []).append(record)
    rows = []
    for units in grouped.values():
        if "document" not in units:
            continue
        row = Row(units["document"], documents)
        row.add_keys(units.get("keys", []))
        long_keys = [r for r in units.get("long_keys", []) if "points" in r]
        row.long_keys = Share(sum(r["found"] for r in long_keys), sum(r["of"] for r in long_keys))
        for record in units.get("times", []):
            row.compress_ms = record.get("compress_ms", math.nan)
            row.tokens_per_s = record.get("tokens_per_s", math.nan)
        rows.append(row)
    order = list(dict.fromkeys(row.label for row in rows))
    return sorted(rows, key=lambda row: (not row.exact, order.index(row.label), row.target or row_compression(row)))


def row_compression(row):
    return row.compression if row.measured else 0


def pareto(rows, measure, equal=0.03):
    """Rows that no other row beats in bytes and `measure` (small is good) at once, by compression. Bytes within 3 % are equal:
    policies cannot be brought to the same byte."""
    rows = [row for row in rows if row.compared]
    front = [row for row in rows
             if not any(other.compression > (1 - equal) * row.compression and measure(other) < measure(row) for other in rows)]
    return sorted(front, key=lambda row: (row.compression, measure(row)))
