#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Prints what the benches measured as tables: table.py RESULTS.json ...

Results are files of Google Benchmark (--benchmark_out). Of a benchmark that ran several times the run with the best share of
the read limit counts. bench/README.md says what the figures are.
"""
import json
import re
import sys

SECTIONS = []


def section(title, *prefixes):
    def add(function):
        SECTIONS.append((title, prefixes, function))
        return function
    return add


def read(paths):
    """{name: benchmark}, in the order of the files; context of the first file."""
    found, context = {}, {}
    for path in paths:
        with open(path, encoding="utf-8") as file:
            result = json.load(file)
        context = context or result.get("context", {})
        for one in result["benchmarks"]:
            name = re.sub(r"/(iterations|min_time|repeats|manual_time|real_time|process_time)\b[^/]*", "", one["name"])
            old = found.get(name)
            if old is None or one.get("share_of_read", 0) > old.get("share_of_read", 0):
                found[name] = one
    return found, context


def number(value, digits=3):
    """A figure with so many significant digits, without an exponent where that is short."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    text = f"{value:.{digits}g}"
    if "e" not in text:
        return text
    return f"{value:.0f}" if 1 <= abs(value) < 1e7 else f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")


def fixed(digits):
    return lambda value: "-" if value is None else f"{value:.{digits}f}"


def percent(value):
    return "-" if value is None else f"{100 * value:.0f}"


def times(value):
    return "-" if value is None else f"{value:.2f}x" if value < 10 else f"{value:.1f}x"


def giga(value):
    return "-" if value is None else f"{value / 1e9:.1f}"


def render(rows, last=None):
    """Rows of words, the first one the head; the first column to the left, the others to the right; words behind each row."""
    width = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(map(len, rows)))]
    for row, words in zip(rows, last or [""] * len(rows)):
        cells = [row[0].ljust(width[0])] + [word.rjust(width[i + 1]) for i, word in enumerate(row[1:])] + [words]
        print("  " + "  ".join(cells).rstrip())


def columns(found, head, *picks):
    """A row for each benchmark: its name without the prefix, then picks of its counters (key, format)."""
    render([head] + [[name.split("/", 1)[1]] + [one.get("error_message", form(one.get(key))) if i == 0 else form(one.get(key))
                                                for i, (key, form) in enumerate(picks)] for name, one in found.items()])


def grid(found, pattern, pick):
    """A row for each first group of the pattern, a column for each second."""
    cells, rows, heads = {}, [], []
    for name, one in found.items():
        match = re.fullmatch(pattern, name)
        if not match:
            continue
        row, head = match[1], match[2].replace("/kv8", "").replace("/kv1", "").replace("/", " ")
        rows += [row] if row not in rows else []
        heads += [head] if head not in heads else []
        cells[row, head] = pick(one)
    if rows:
        render([[""] + heads] + [[row] + [cells.get((row, head), "-") for head in heads] for row in rows])


@section("Attention, one query, 32768 entries in DRAM, 8 KV heads: % of the read limit of the same round (GB/s)", "attend/.*/kv")
def attention(found):
    grid(found, r"attend/([^/]+)/(d\d+/kv8/g\d+)/n32768", lambda one: f"{percent(one['share_of_read'])} ({giga(one['bytes/s'])})")


@section("Attention, one head of 1024 entries that stays in the caches: times plain Eigen f32", "hot/")
def hot(found):
    grid(found, r"hot/([^/]+)/(d\d+/kv\d+/g\d+)/n1024", lambda one: times(one["of_eigen"]))


@section("Attention on two threads", "two_threads/")
def two_threads(found):
    columns(found, ["", "of one thread", "% of read on two"], ("of_one_thread", times), ("share_of_read_on_two", percent))


@section("Attention of a prompt, 512 queries", "prefill/")
def prefill(found):
    columns(found, ["", "GFLOP/s", "% of FMA peak"], ("flop/s", giga), ("share_of_fma", percent))


@section("Attention beside ggml at equal bytes, 32768 entries in DRAM, 8 KV heads, ggml's heads contiguous", "attend/[^/]+/d\\d+/g\\d+$")
def beside_ggml(found):
    columns(found, ["", "times faster", "ms", "ggml ms", "% of read", "ggml %", "error", "ggml error"],
            ("times_faster", times), ("ms", fixed(2)), ("ggml_ms", fixed(2)), ("share_of_read", percent), ("ggml_share", percent),
            ("output", number), ("ggml_output", number))


@section("Scores of a prompt of 32768, 8 KV heads of 128", "score/")
def scores(found):
    columns(found, ["", "% of read", "GB/s"], ("share_of_read", percent), ("bytes/s", giga))


@section("Selection, one head", "select/")
def selection(found):
    columns(found, ["", "us", "nth_element us"], ("us", fixed(1)), ("nth_element_us", fixed(0)))


@section("Gather of what stays, 8 KV heads of 128, and with selection: times a copy of as many bytes", "gather/")
def gather(found):
    columns(found, ["", "of copy", "with selection", "% of read"], ("of_copy", times), ("with_select", times), ("read_share", percent))


@section("Encoding and decoding: GB/s of f16 rows", "(encode|decode)/(int|lm)")
def coding(found):
    rows = [["", "encode", "decode"]]
    for name in found:
        if name.startswith("encode/"):
            code = name.split("/", 1)[1]
            rows.append([code] + [giga(found.get(f"{what}/{code}", {}).get("bytes/s")) for what in ("encode", "decode")])
    render(rows)


@section("compress() of a layer of 32768 rows, 8 KV heads of 128: in units of reading it once", "compress/")
def compress(found):
    columns(found, ["", "passes", "ms"], ("passes", fixed(2)), ("ms", fixed(1)))


@section("compress() with every policy: a layer of 8192 rows, 8 KV heads of 128, a quarter stays; scorers alone, budgets and codecs beside KeyDiff", "policy/")
def policies(found):
    columns(found, ["", "passes", "ms", "MB held"], ("passes", fixed(2)), ("ms", fixed(1)), ("MB", fixed(1)))


@section("Error against bits, real keys and values (SmolLM2-135M; bound: of Gaussian rows at these bits)", "(code|format)/")
def codes(found):
    columns(found, ["", "bits", "key NMSE", "bound", "value NMSE", "bound", "logits", "output", "4 exact", "of ggml's", "enc ns", "dec ns"],
            ("bits", fixed(2)), ("key_nmse", number), ("key_bound", number), ("value_nmse", number), ("value_bound", number),
            ("logits", number), ("output", number), ("output_4_exact", number), ("of_format", times), ("encode_ns", fixed(2)),
            ("decode_ns", fixed(2)))


@section("Error of the attention output at equal bytes, real keys, values and queries (layer 15 of SmolLM2-135M)", "rows/")
def kept_rows(found):
    columns(found, ["", "error", "x", "kept %", "compress ms", "attend us"],
            ("output", number), ("x", fixed(2)), ("kept", percent), ("compress_ms", fixed(2)), ("attend_us", fixed(1)))


@section("CSR: one layer of 3 KV heads of 64, times an exact cache", "csr/")
def csr(found):
    columns(found, ["", "us a layer", "of exact", "rows encoded a s"], ("us_a_layer", fixed(1)), ("coded_by_exact", times),
            ("encoded_per_s", number))


@section("Sparse coding: share of the products alone", "pursuit/")
def pursuit(found):
    columns(found, ["", "vectors/s", "% of products"], ("vectors/s", number), ("share_of_products", percent))


@section("Attention over sparse codes: by tables and by decoding", "attend_codes/")
def attend_codes(found):
    columns(found, ["", "tables us", "decoding us"], ("tables_us", fixed(1)), ("decoding_us", fixed(1)))


@section("Matrix entropies: times the Gram products that they need", "(entropy|moments)/")
def entropy(found):
    render([["", "of Gram", "ms"]] + [[name, times(one["times_gram"]), fixed(1)(one["real_time"])] for name, one in found.items()])


@section("Decoding SmolLM2-135M, one thread: tokens/s, MB of the cache, time in compress() and its longest call", "decode/depth")
def decode(found):
    ways = []
    for one in found.values():
        ways += [key[:-3] for key in one if key.endswith(" MB") and key[:-3] not in ways]
    ways.sort(key=lambda way: (way.startswith("llama.cpp"), way != "exact", len(way)))

    rows = [[""]]
    for name in found:
        rows[0] += [name.split("/", 1)[1], "MB", "compress", "worst ms"]
    for way in ways:
        row = [""]
        for one in found.values():
            compress = one.get(way + " compress")
            row += [fixed(1)(one.get(way)), fixed(1)(one.get(way + " MB")), "-" if compress is None else f"{100 * compress:.1f} %",
                    fixed(1)(one.get(way + " worst_ms"))]
        rows.append(row)
    # Names are long: behind the figures.
    render(rows, [""] + ways)
    for name, one in found.items():
        peers = [way for way in ways if way.startswith("llama.cpp f16") and way in one]
        best = max((way for way in ways if "llama.cpp" not in way), key=lambda way: one.get(way, 0))
        for peer in peers:
            print(f"  {name.split('/', 1)[1]}: {times(one[best] / one[peer])} of {peer}: {best}")


def main(paths):
    if not paths or paths[0] in ("-h", "--help"):
        sys.exit(__doc__)
    found, context = read(paths)
    shown = False
    for title, prefixes, show in SECTIONS:
        chosen = {name: one for name, one in found.items() if any(re.match(prefix, name) for prefix in prefixes)}
        if chosen:
            print(("\n" if shown else "") + title)
            show(chosen)
            shown = True
    kernels = context.get("kernels")
    print(f"\n{context.get('num_cpus', '?')} cores at {context.get('mhz_per_cpu', '?')} MHz" + (f", kernels {kernels}" if kernels else ""))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (OSError, ValueError, KeyError) as failure:
        sys.exit(f"table.py: {failure}")
