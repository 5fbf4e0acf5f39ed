#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Real text for the comparison, cut from Debian packages: prose (handbook), old prose (kjv), code (jsonhpp); and for
run.sh --held-out text on which nothing was chosen: prose (history), code (stb), reference text (policy).

    examples/get_text.py DIRECTORY [NAME ...] [--progress-fd N]

writes DIRECTORY/NAME.txt and prints its path; without names, the first three. The packages are downloaded with apt-get and unpacked below DIRECTORY, not
installed. The figures in the README were made with the versions of Debian 12; other versions give other text, which is
said and is no error. Texts that are already there are not made again. Descriptor N gets a line
"stage <tab> done <tab> total" after every text.
"""
import gzip
import hashlib
import html.parser
import pathlib
import re
import subprocess
import sys


class Failure(Exception):
    """A message for the user."""


def run(*command, cwd=None):
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True)
    except FileNotFoundError:
        raise Failure(f"{command[0]} is not there; this script needs Debian or Ubuntu") from None
    if done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        raise Failure(f"{' '.join(map(str, command))}: {last[0]}")
    return done.stdout


class Packages:
    """Debian packages, unpacked into a directory of their own."""

    # The versions that the checksums below belong to.
    debian_12 = {
        "debian-handbook": "11.20220922",
        "bible-kjv": "4.38",
        "bible-kjv-text": "4.38",
        "nlohmann-json3-dev": "3.11.2-2",
        "debian-history": "2.28",
        "debian-policy": "4.6.2.0",
        "libstb-dev": "0.0~git20220908.8b5f1f3+ds-1",
    }

    def __init__(self, directory):
        self.directory = directory

    def unpacked(self, name):
        folder = self.directory / name
        if not folder.is_dir():
            archive = self.archive(name)
            part = self.directory / (name + ".part")  # an interrupted run must not leave half a folder
            run("rm", "-rf", part)
            run("dpkg-deb", "-x", archive, part)
            part.rename(folder)
            archive.unlink()
        return folder

    def archive(self, name):
        self.directory.mkdir(parents=True, exist_ok=True)
        wanted = self.debian_12[name]
        for request in (f"{name}={wanted}", name):
            try:
                run("apt-get", "download", request, cwd=self.directory)
                break
            except Failure as failure:
                reason = failure
        else:
            raise Failure(f"package {name} cannot be downloaded ({reason}). Is there a network, and are the package lists "
                          "up to date (apt-get update)? With --text FILE the comparison runs on your own text.")
        archive = sorted(self.directory.glob(f"{name}_*.deb"))[-1]
        version = run("dpkg-deb", "-f", archive, "Version").decode().strip()
        if version != wanted:
            print(f"{name}: version {version}, not {wanted} of Debian 12: the text differs from the published one",
                  file=sys.stderr)
        return archive


class Paragraphs(html.parser.HTMLParser):
    """The text of an HTML body, with a blank line around every block element."""

    blocks = set("p div h1 h2 h3 h4 h5 h6 li tr table ul ol dl dt dd pre br section".split())
    silent = {"script", "style", "head"}

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.pieces = []
        self.in_body = False
        self.muted = 0

    def handle_starttag(self, tag, attributes):
        self.in_body |= tag == "body"
        self.muted += tag in self.silent
        if tag in self.blocks:
            self.pieces.append("\n\n")

    def handle_startendtag(self, tag, attributes):
        if tag in self.blocks:
            self.pieces.append("\n\n")

    def handle_endtag(self, tag):
        self.muted -= tag in self.silent
        if tag in self.blocks:
            self.pieces.append("\n\n")

    def handle_data(self, data):
        if self.in_body and not self.muted:
            self.pieces.append(data)


def paragraphs(text):
    """One line a paragraph, one blank between words, an empty line between paragraphs."""
    text = text.replace("\r", "").replace("\u00a0", " ")
    lines = [re.sub("[ \t]+", " ", line).strip(" ") for line in text.split("\n")]
    out, current = [], []
    for line in lines + [""]:
        if line:
            current.append(line)
        elif current:
            out.append(" ".join(current).strip())
            current = []
    return "\n\n".join(paragraph for paragraph in out if paragraph)


def pages(folder, names):
    """The text of HTML pages, those that are there."""
    sections = []
    for name in names:
        page = folder / name
        if page.exists():
            reader = Paragraphs()
            reader.feed(page.read_text(encoding="utf-8"))
            reader.close()
            sections.append(paragraphs("".join(reader.pieces)))
    return "\n\n".join(sections)


def handbook(packages):
    folder = packages.unpacked("debian-handbook") / "usr/share/doc/debian-handbook/html/en-US"
    return pages(folder, (f"sect.{name}.html" for name in (
        "foundation-documents", "debian-internals", "follow-debian-news", "role-of-distributions")))


def kjv(packages):
    program = packages.unpacked("bible-kjv") / "usr/bin/bible"
    data = packages.unpacked("bible-kjv-text") / "usr/lib"
    text = run(program, "-p", data, "gen37:1-gen50:26").decode("latin-1")
    text = re.sub(r"\n\s*Genesis \d+\s*\n", "\n\n", text)  # heads of chapters
    return paragraphs(re.sub(r"\n\s+\d+ ", "\n ", text))  # numbers of verses


def jsonhpp(packages):
    header = packages.unpacked("nlohmann-json3-dev") / "usr/include/nlohmann/json.hpp"
    text = header.read_text(encoding="utf-8")
    mark = "class basic_json"
    first = text.index(mark)  # the first one is a forward declaration
    return text[max(first, text.find(mark, first + len(mark))):]


def history(packages):
    folder = packages.unpacked("debian-history") / "usr/share/doc/debian-history/docs"
    text = pages(folder, (f"{name}.en.html" for name in ("detailed", "leaders", "releases", "intro")))
    return text[text.index("Debian was begun"):]  # behind the table of contents


def stb(packages):
    header = packages.unpacked("libstb-dev") / "usr/include/stb/stb_truetype.h"
    text = header.read_text(encoding="utf-8")
    return text[text.rindex("#ifdef STB_TRUETYPE_IMPLEMENTATION"):][:100_000]  # the code, not its manual


def policy(packages):
    file = packages.unpacked("debian-policy") / "usr/share/doc/debian-policy/policy.txt.gz"
    text = gzip.decompress(file.read_bytes()).decode("utf-8")
    mark = "5. Control files and their fields\n"
    return paragraphs(text[text.rindex(mark):][:100_000])


# The text that the packages of Debian 12 give.
DOCUMENTS = {
    "handbook": (handbook, "26c6da3951399e76114697b9f1a41df062a7fbbd109591de4052784ee663c8e5"),
    "kjv": (kjv, "93c0b86095e24da39e8cad5efcb0e6238c0c7cbe32d9b1c4e8e7b58d8c675119"),
    "jsonhpp": (jsonhpp, "aa3c6e115df885af6930996f72ebf8dc04815b5a647c53f37405eb01e100a094"),
}
HELD_OUT = {
    "history": (history, "684b2d7e6b9bc094c11899874485f98884c7be1d6eb7513b1ca632748bae3a4f"),
    "stb": (stb, "1777bd0a5925e7af177b4bc22fe3c1552ad8179103d20426607a6f9f9b502da5"),
    "policy": (policy, "f1dde75a1709c45d9304fcb5e95254d617b74d7d67ad051796df99d986fdef8c"),
}

# What kind of text each is.
KINDS = {"handbook": "prose", "kjv": "prose", "history": "prose", "jsonhpp": "code", "stb": "code", "policy": "reference"}


def main(arguments):
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    report = None
    if "--progress-fd" in arguments:
        at = arguments.index("--progress-fd")
        report = open(int(arguments[at + 1]), "w", buffering=1)
        arguments = arguments[:at] + arguments[at + 2:]
    directory = pathlib.Path(arguments[0]).resolve()
    names = arguments[1:] or list(DOCUMENTS)
    known = {**DOCUMENTS, **HELD_OUT}
    for name in names:
        if name not in known:
            raise Failure(f"there is no document {name}; the documents are {', '.join(known)}")
    packages = Packages(directory / "packages")
    for count, name in enumerate(names):
        if report:
            print("Getting texts", count, len(names), sep="\t", file=report)
        cut, checksum = known[name]
        file = directory / f"{name}.txt"
        if not file.exists():
            text = cut(packages).encode("utf-8")
            if hashlib.sha256(text).hexdigest() != checksum:
                print(f"{name}: not the text of Debian 12 (checksum differs); figures will differ from the published ones",
                      file=sys.stderr)
            part = file.with_suffix(".part")
            part.write_bytes(text)
            part.rename(file)
        if report:
            print("Getting texts", count + 1, len(names), sep="\t", file=report)
        else:
            print(file, flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (Failure, OSError, ValueError) as failure:
        sys.exit(f"get_text.py: {failure}")
    except KeyboardInterrupt:
        sys.exit(130)
