# SPDX-License-Identifier: MIT
"""The report as files: all parts there, well formed, self-contained, tables equal in every form; bad records are named."""
import csv
import html.parser
import json
import pathlib
import re
import tempfile
import unittest
import xml.etree.ElementTree

from made import RECORDS, make
from report.records import Failure, Records

PLOTS = {"main", "copy", "keys", "key_depths", "speed", "kept_heads", "kept_positions", "layers", "documents"}


class Elements(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


class Page(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.directory, cls.folder = make()
        cls.text = (cls.directory / "report.html").read_text(encoding="utf-8")
        cls.elements = Elements(cls.text).found

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def test_every_plot_is_there_as_svg_and_png_and_on_the_page(self):
        self.assertEqual({file.stem for file in (self.directory / "plots").glob("*.svg")}, PLOTS)
        self.assertEqual({file.stem for file in (self.directory / "plots").glob("*.png")}, PLOTS)
        self.assertEqual({attributes["id"] for attributes in self.of("figure")}, {f"plot-{name}" for name in PLOTS})
        for file in (self.directory / "plots").glob("*.svg"):
            root = xml.etree.ElementTree.parse(file).getroot()
            names = {child.tag.split("}")[1]: child for child in root}
            self.assertTrue(names["title"].text and len(names["desc"].text) > 40, file)
            self.assertIn("prefers-color-scheme:dark", names["style"].text)

    def test_it_says_what_the_figures_are_of(self):
        for words in ("SmolLM2-135M-Instruct", "handbook, stb", "512 tokens", "128 tokens of running text", "12 of 5 digits in 2 texts",
                      "16 digits", "cannot get there"):
            self.assertIn(words, self.text)

    def test_every_section_is_linked(self):
        sections = {attributes["id"] for attributes in self.of("section")}
        links = {attributes["href"][1:] for attributes in self.of("a") if attributes["href"].startswith("#")}
        self.assertEqual(sections, links)
        self.assertGreaterEqual(len(sections), 8)

    def test_ids_are_unique_and_references_lead_somewhere(self):
        ids = [attributes["id"] for _, attributes in self.elements if "id" in attributes]
        self.assertEqual(len(ids), len(set(ids)))
        for name in re.findall(r'(?:xlink:href="|url\()#([^")]+)', self.text):
            self.assertIn(name, ids)

    def test_nothing_is_fetched(self):
        outside = re.findall(r'(?:src|href)="(?!#|data:)([^"]*)"|url\((?!#)([^)]*)\)|@import', self.text)
        self.assertEqual(outside, [])
        self.assertTrue(any("default-src 'none'" in attributes.get("content", "") for attributes in self.of("meta")))

    def test_plots_and_tables_can_be_read_aloud(self):
        for svg in self.of("svg"):
            self.assertEqual(svg["role"], "img")
            self.assertEqual(len(svg["aria-labelledby"].split()), 2)
        self.assertEqual(len(self.of("caption")), len(self.of("table")))
        self.assertTrue(all("scope" in attributes for attributes in self.of("th")))

    def test_colours_are_variables(self):
        plots = self.text[self.text.index("<main"):self.text.index("</main")]
        left = set(re.findall(r"#[0-9a-f]{6}\b", plots)) - {"#010101", "#fefefe"}
        self.assertEqual(left, set())

    def test_tables_say_the_same_as_csv_and_json(self):
        files = list((self.directory / "tables").glob("*.csv"))
        self.assertGreaterEqual(len(files), 6)
        for file in files:
            rows = json.loads(file.with_suffix(".json").read_text())
            with open(file, newline="") as lines:
                read = list(csv.DictReader(lines))
            self.assertEqual(len(rows), len(read))
            for row, line in zip(rows, read):
                self.assertEqual(list(row), list(line))
                for name, value in row.items():
                    self.assertEqual("" if value is None else str(value), line[name])

    def test_rows_are_means_of_the_records(self):
        records = [json.loads(line) for line in RECORDS.read_text().splitlines()]
        rows = json.loads((self.directory / "tables" / "all_rows.json").read_text())
        self.assertGreater(len(rows), 8)
        for row in rows:
            some = [r for r in records if r["unit"] == "document" and r["policy"] == row["policy"]
                    and (r["target"] or None) == row["target"]]
            self.assertEqual(len(some), 2)
            if row["note"]:
                continue
            self.assertAlmostEqual(row["bytes"], sum(r["bytes"] for r in some) / 2, delta=1)
            self.assertAlmostEqual(row["kld"], sum(r["running"]["kld"]["mean"] for r in some) / 2, 12)
            keys = [r for r in records if r["unit"] == "keys" and r["policy"] == row["policy"] and (r["target"] or None) == row["target"]]
            self.assertEqual(row["keys_n"] or 0, sum(r.get("of", 0) for r in keys))


class WhatIsRecorded(unittest.TestCase):
    def fails(self, text, words):
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "records.jsonl"
            file.write_text(text)
            with self.assertRaises(Failure) as caught:
                make(file)
            self.assertIn(words, str(caught.exception))

    def test_what_is_wrong_is_named(self):
        lines = RECORDS.read_text().splitlines(keepends=True)
        self.fails("", "no result")
        self.fails(lines[0] + "{}\n", "line 2")
        self.fails("no record\n" + lines[0], "line 1")
        documents = [line for line in lines if '"unit":"document"' in line and '"policy":"exact"' in line]
        self.fails("".join(documents), "no policy has run")

    def test_the_newest_result_and_the_usual_settings_count(self):
        lines = [json.loads(line) for line in RECORDS.read_text().splitlines()]
        new = next(r for r in lines if r["unit"] == "document" and r["policy"] != "exact" and "bytes" in r)
        again = json.loads(json.dumps(new))
        again["running"]["kld"]["mean"] = 77.0
        other = json.loads(json.dumps(new))
        other["settings"]["score"] += 1
        other["running"]["kld"]["mean"] = 99.0
        chosen = Records([*lines, again, other])
        found = [r for r in chosen.of("document") if (r["policy"], r["target"], r["text"]) == (new["policy"], new["target"], new["text"])]
        self.assertEqual([r["running"]["kld"]["mean"] for r in found], [77.0])
        self.assertEqual(len(chosen.documents()), 2)

    def test_half_a_sweep_makes_a_report_of_what_is_complete(self):
        lines = RECORDS.read_text().splitlines(keepends=True)
        units = [json.loads(line)["unit"] for line in lines]
        half = lines[:units.index("keys")] + [lines[-1][:40]]
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "records.jsonl"
            file.write_text("".join(half))
            directory, made = make(file)
            self.assertIn("plot-main", (directory / "report.html").read_text())
            made.cleanup()


if __name__ == "__main__":
    unittest.main()
