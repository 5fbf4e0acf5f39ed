#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs a command and draws a progress bar of what it reports.

    progress.py [--fd OPTION | --ninja LABEL | --apt LABEL] COMMAND ...

--fd OPTION    the command is started with OPTION N and writes lines "stage <tab> done <tab> total" to descriptor N
--ninja LABEL  the command prints lines "[done/total] ...", as ninja does; its output is shown only if it fails
--apt LABEL    the command is apt-get; its status lines are read; its output is shown only if it fails

Bars go to standard error. When that is no terminal, or tqdm is missing, a line is printed at the start and the end of
every stage instead, and every minute, with the time that is left. The exit status is the command's.
"""
import os
import re
import subprocess
import sys
import tempfile
import time

try:
    from tqdm import tqdm
except ImportError:
    tqdm = None


class Stage:
    """One bar, or two lines."""

    def __init__(self, name, total):
        self.name, self.total, self.done, self.start = name, total, 0, time.monotonic()
        self.said = self.start
        self.bar = None
        if tqdm and sys.stderr.isatty():
            self.bar = tqdm(total=total, desc=name, leave=True, dynamic_ncols=True,
                            bar_format="{desc:<28} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]")
        else:
            print(f"{name} ...", file=sys.stderr, flush=True)

    def set(self, done, total):
        if self.bar is not None:
            self.bar.total = total
            self.bar.update(done - self.done)
        self.done, self.total = done, total
        now = time.monotonic()
        if self.bar is None and now - self.said >= 60 and 0 < done < total:
            left = (now - self.start) * (total - done) / done
            print(f"{self.name}: {done}/{total}, about {left / 60:.0f} min left", file=sys.stderr, flush=True)
            self.said = now

    def close(self):
        if self.bar is not None:
            self.bar.close()
        else:
            print(f"{self.name}: {self.done}/{self.total} in {time.monotonic() - self.start:.1f} s",
                  file=sys.stderr, flush=True)


def steps_of_program(lines):
    for line in lines:
        parts = line.rstrip("\n").split("\t")
        if len(parts) == 3 and parts[1].isdigit() and parts[2].isdigit():
            yield parts[0], int(parts[1]), int(parts[2])


def steps_of_ninja(label, lines, log):
    for line in lines:
        log.append(line)
        found = re.match(r"\[(\d+)/(\d+)\]", line)
        if found:
            yield label, int(found[1]), int(found[2])


def steps_of_apt(label, lines):
    # dlstatus:n:percent:text while downloading, pmstatus:package:percent:text while installing
    for line in lines:
        parts = line.split(":")
        if parts[0] in ("dlstatus", "pmstatus") and len(parts) > 2:
            half = 0 if parts[0] == "dlstatus" else 50
            try:
                yield label, half + int(float(parts[2]) / 2), 100
            except ValueError:
                pass


def draw(steps):
    stage = None
    for name, done, total in steps:
        if stage is None or stage.name != name:
            if stage:
                stage.close()
            stage = Stage(name, total)
        stage.set(done, total)
        if done >= total:  # now, not when the next stage starts: the command may print in between
            stage.close()
            stage = None
    if stage:
        stage.close()


def main(arguments):
    if len(arguments) < 3 or arguments[0] not in ("--fd", "--ninja", "--apt"):
        sys.exit(__doc__)
    mode, word, *command = arguments
    log = []
    if mode == "--ninja":
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        draw(steps_of_ninja(word, child.stdout, log))
    else:
        reader, writer = os.pipe()
        if mode == "--fd":
            child = subprocess.Popen([*command, word, str(writer)], pass_fds=[writer])
        else:
            output = tempfile.TemporaryFile("w+", errors="replace")  # a pipe that nobody reads would block apt-get
            child = subprocess.Popen([*command, "-o", f"APT::Status-Fd={writer}"], pass_fds=[writer],
                                     stdout=output, stderr=subprocess.STDOUT)
        os.close(writer)
        with os.fdopen(reader, errors="replace") as lines:
            draw(steps_of_program(lines) if mode == "--fd" else steps_of_apt(word, lines))
    status = child.wait()
    if mode == "--apt":
        output.seek(0)
        log = list(output)
    if status != 0 and log:
        sys.stderr.write("".join(log))
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as failure:  # no such command
        sys.exit(f"progress.py: {failure}")
