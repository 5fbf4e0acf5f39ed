# SPDX-License-Identifier: MIT
"""Tables, plots and a web page from the records of a sweep (examples/run.sh --sweep). Reads the records and nothing else.

    PYTHONPATH=examples python3 -m report RECORDS.jsonl DIRECTORY [--context N] [--at X] [--progress-fd N]

Writes DIRECTORY/report.html, DIRECTORY/plots/*.svg and *.png, DIRECTORY/tables/*.csv and *.json; prints the path of the page.
"""
