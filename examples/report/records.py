# SPDX-License-Identifier: MIT
"""Records of a sweep: one JSON object a line."""
import json
from collections import Counter


class Failure(Exception):
    """A message for the user."""


def read(path):
    """All complete records. A cut-off last line is what a sweep that was stopped leaves behind."""
    out = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n"):
                break
            try:
                record = json.loads(line)
                record["unit"], record["settings"]["context"]
            except (ValueError, KeyError, TypeError):
                raise Failure(f"{path}: line {number} is no record of a sweep") from None
            out.append(record)
    if not any(record["unit"] == "document" for record in out):
        raise Failure(f"{path}: there is no result in it yet")
    return out


def name_of(record, *fields):
    return json.dumps([record[field] for field in fields])


class Records:
    """The records of one model at one context length, and of each unit those with the settings that most of them have."""

    def __init__(self, everything, context=None):
        measured = [r for r in everything if r["unit"] == "document"]
        self.model = Counter(r["model"] for r in measured).most_common(1)[0][0]
        contexts = Counter(r["settings"]["context"] for r in measured if r["model"] == self.model)
        self.contexts = sorted(contexts)
        self.context = context or contexts.most_common(1)[0][0]
        if self.context not in contexts:
            raise Failure(f"there is nothing at a context of {self.context} tokens; there is {self.contexts}")
        newest = {name_of(r, "unit", "text", "policy", "target", "settings"): r for r in everything
                  if r["model"] == self.model and r["settings"]["context"] == self.context}
        settings = {}
        for record in newest.values():
            settings.setdefault(record["unit"], Counter())[name_of(record, "settings")] += 1
        usual = {unit: counts.most_common(1)[0][0] for unit, counts in settings.items()}
        self.records = [r for r in newest.values() if r["unit"] == "text" or name_of(r, "settings") == usual[r["unit"]]]

    def of(self, unit):
        return [r for r in self.records if r["unit"] == unit]

    def documents(self):
        """Names of the documents on which all policies ran (while a sweep goes on, not all have)."""
        ran = Counter(r["document"] for r in self.of("document"))
        most = max(ran.values())
        return [name for name, count in ran.items() if count == most]

    def texts(self):
        """Of the documents."""
        settings = self.of("document")[0]["settings"]
        return [r for r in self.of("text") if r["settings"] == settings]

    def key_texts(self):
        settings = next((r["settings"] for r in self.of("keys")), {})
        return [r for r in self.of("text") if settings and settings.items() <= r["settings"].items()]
