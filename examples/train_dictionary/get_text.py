#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Text to train dictionaries on: the same kinds as the comparison's, from the same packages, but other parts of them.

    examples/train_dictionary/get_text.py DIRECTORY [--progress-fd N]

writes DIRECTORY/train_{handbook,kjv,jsonhpp}.txt and prints their paths; nothing in them is in the documents that the
comparison judges on: other sections of the handbook, other books of the Bible, other headers of the library.
"""
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import get_text  # noqa: E402

judged = ("foundation-documents", "debian-internals", "follow-debian-news", "role-of-distributions")


def handbook(packages):
    folder = packages.unpacked("debian-handbook") / "usr/share/doc/debian-handbook/html/en-US"
    sections = []
    for page in sorted(folder.glob("sect.*.html")):
        if page.name[len("sect."):-len(".html")] in judged:
            continue
        reader = get_text.Paragraphs()
        reader.feed(page.read_text(encoding="utf-8"))
        reader.close()
        sections.append(get_text.paragraphs("".join(reader.pieces)))
        if sum(map(len, sections)) > 400_000:
            break
    return "\n\n".join(sections)


def kjv(packages):
    program = packages.unpacked("bible-kjv") / "usr/bin/bible"
    data = packages.unpacked("bible-kjv-text") / "usr/lib"
    text = get_text.run(program, "-p", data, "exo1:1-exo20:26").decode("latin-1")
    text = get_text.re.sub(r"\n\s*Exodus \d+\s*\n", "\n\n", text)  # heads of chapters
    return get_text.paragraphs(get_text.re.sub(r"\n\s+\d+ ", "\n ", text))  # numbers of verses


def jsonhpp(packages):
    folder = packages.unpacked("nlohmann-json3-dev") / "usr/include/nlohmann/detail"
    names = ("input/parser.hpp", "input/lexer.hpp", "output/serializer.hpp")
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in names)


TEXTS = {"train_handbook": handbook, "train_kjv": kjv, "train_jsonhpp": jsonhpp}


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
    packages = get_text.Packages(directory / "packages")
    for count, (name, cut) in enumerate(TEXTS.items()):
        file = directory / f"{name}.txt"
        if not file.exists():
            part = file.with_suffix(".part")
            text = cut(packages)
            part.write_text(text, encoding="utf-8")
            part.rename(file)
        if report:
            print("Getting training texts", count + 1, len(TEXTS), sep="\t", file=report)
        else:
            print(file, flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (get_text.Failure, OSError, ValueError) as failure:
        sys.exit(f"get_text.py: {failure}")
