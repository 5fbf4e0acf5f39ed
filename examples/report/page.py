# SPDX-License-Identifier: MIT
"""The page: one file that needs nothing else, no network, and works without its script."""
import html
import pathlib

from .style import FAMILIES, STYLE

HERE = pathlib.Path(__file__).parent


def figure_of(plot):
    return (f'<figure id="plot-{plot.name}"><div class="scroll" tabindex="0" role="region" aria-label="{html.escape(plot.title)}">'
            f"{plot.svg}</div><figcaption><strong>{html.escape(plot.title)}.</strong> {html.escape(plot.text)} "
            f"Files: plots/{plot.name}.svg, .png.</figcaption></figure>")


def facts(records, rows):
    texts, keys = records.texts(), records.key_texts()
    first = texts[0]
    measured = [row for row in rows if row.measured and not row.exact]
    out = [("Model", first["model_name"]), ("SHA-256", records.model), ("lesskv", first["settings"]["version"]),
           ("Processor", first["cpu"]), ("Documents", ", ".join(r["document"] for r in texts)),
           ("Context", f"{records.context} tokens; exact cache {first['bytes_exact'] / 1e6:.1f} MB; exact prefill "
                       f"{first['prefill_ms'] / 1e3:.1f} s on one thread")]
    if measured:
        row = measured[0]
        out.append(("Scored", f"{row.running_kld.n} tokens of running text and {row.copy_kld.n} copied ones a row"))
    if keys:
        planted, found = sum(r["settings"]["keys"] for r in keys), sum(r["keys_found"] for r in keys)
        lengths = [r["tokens"] for r in keys]
        out.append(("Pass keys", f"{planted} of {keys[0]['settings']['digits']} digits in {len(keys)} texts of {min(lengths)} to "
                                 f"{max(lengths)} tokens; the exact cache finds {found}, which are those that count"))
    for record in records.of("long_keys_length"):
        lengths = ", ".join(f"{length}: {found} of {record['of']}"
                            for length, found in zip(record["settings"]["lengths"], record["found"]))
        out.append(("Longest pass key", f"{record['digits'] or 'none'} digits; keys that the exact cache repeats, by digits: {lengths}"))
    return "".join(f"<dt>{html.escape(str(name))}</dt><dd>{html.escape(str(value))}</dd>" for name, value in out)


def page(records, rows, plots, tables):
    by_name = {plot.name: plot for plot in plots}

    def figures(*names):
        return "".join(figure_of(by_name[name]) for name in names if name in by_name)

    def shown(*names):
        return "".join(table.html() for table in tables if any(table.name.startswith(name) for name in names)
                       and any(column.title for column in table.columns))

    sections = [
        ("loss", "Bytes against loss", figures("main", "copy")),
        ("pass-keys", "Pass keys", figures("keys", "key_depths")),
        ("speed", "Speed", figures("speed")),
        ("kept", "What stays", figures("kept_heads", "kept_positions")),
        ("needs", "What layers need", figures("layers")),
        ("texts", "Texts", figures("documents", "contexts")),
        ("front", "Pareto front", shown("pareto")),
        ("tables", "Tables", shown("rows_", "all_rows", "documents", "layers")),
    ]
    sections = [section for section in sections if section[2]]
    links = "".join(f'<li><a href="#{name}">{title}</a></li>' for name, title, _ in sections)
    families = {row.family for row in rows}
    legend = "; ".join(f"{name}: {text}" for name, text in FAMILIES.items() if name in families)
    body = "".join(f'<section id="{name}"><h2>{title}</h2>{content}</section>' for name, title, content in sections)
    style, script = (HERE / "page.css").read_text(), (HERE / "page.js").read_text()
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>lesskv: which policy, and what is lost</title>
<style>{STYLE}
{style}</style>
</head>
<body>
<header>
<h1>Which policy, at how many bytes, and what is lost</h1>
<p>Every policy compresses the cache of the same prompts to the same bytes. What the model then says is compared with what it says with
the exact cache: over text that goes on (KL divergence, in nats), over earlier text to be copied, and over pass keys hidden in the
prompt. Bytes count all that is held. Error bars are one standard error over the documents.</p>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<dl>{facts(records, rows)}</dl>
<p class=note>Lines: {html.escape(legend)}. &#9670; marks rows that no other beats in bytes and divergence at once.</p>
</header>
<main>
{body}
</main>
<script>
{script}</script>
</body>
</html>
"""
