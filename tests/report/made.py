# SPDX-License-Identifier: MIT
"""The report that the tests look at, made from recorded results of a small real sweep."""
import contextlib
import io
import pathlib
import tempfile

from report.__main__ import main

RECORDS = pathlib.Path(__file__).parent.parent / "data" / "report" / "records.jsonl"


def make(records=RECORDS, *options):
    """Its folder; goes away with the value that is returned beside it."""
    folder = tempfile.TemporaryDirectory(prefix="lesskv report ")
    directory = pathlib.Path(folder.name)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            main([str(records), str(directory), *options])
        except Exception:
            folder.cleanup()
            raise
    assert out.getvalue().strip() == str(directory / "report.html")
    return directory, folder
