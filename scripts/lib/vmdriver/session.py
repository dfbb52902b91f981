# SPDX-License-Identifier: BSD-2-Clause
"""A session: boot, log in, run the job, power off, extract the results."""

import contextlib
import os
import pathlib
import re
import select
import subprocess
import sys
import tempfile
import termios
import time
import tty

from . import disks, jobs, machine
from .console import Console
from .errors import Failure, Trouble
from .trouble import Watcher

QUIET = 30
# Messages about disks that the tests create, break and destroy. The log has them.
NOISE = re.compile(r"^(?:g_vfs_done\(\)|GEOM_|asyncpager: .* failed, errno|Expensive callout)")
LEAVE = b"\x1d"

# Prompts of the console before a shell.
BOOT = {
    # The loader of an image writes to the screen, which SeaBIOS copies to the serial line.
    "menu": r"Autoboot in|Hit \[Enter\] to boot",
    "loader": r"^OK ?$",
    # Not the beginning of "Last login: Wed Nov 25".
    "login": r"(?<!Last )login: $",
    "password": r"^Password:$",
    "single": r"Enter full pathname of shell or RETURN",
    "root": r"^mountroot> $",
    "shell": r"(?:^|[\w~/] )[#] $",
}


# Commands for the loader, one at each prompt. The prompt after a change of the
# console may be lost.
LOADER = ["set kern.hz=1000", "set boot_serial=YES", "set console=comconsole", "boot"]


class Progress:
    """Prints the lines of the job with the time, and a line when nothing happens."""

    def __init__(self, quiet):
        self.begin = time.monotonic()
        self.last = self.begin
        self.quiet = quiet
        self.doing = "starting"
        self.shown = False

    def say(self, text):
        """Print a line with the time since the start."""
        self.last = time.monotonic()
        if not self.quiet:
            print(f"[{int(self.last - self.begin):5d} s] {text}", flush=True)

    def line(self, line):
        """Print a line of the console if the job is running."""
        if line == jobs.BEGIN:
            self.shown = True
        elif line.startswith(jobs.END):
            self.shown = False
        elif self.shown and line.strip() and not NOISE.search(line):
            self.say(line)

    def tick(self):
        """Print a line if nothing was printed for QUIET seconds."""
        if time.monotonic() - self.last > QUIET:
            self.say(f"still {self.doing}")


def run(options):
    """Run the session. Returns the exit code."""
    qemu = machine.find_qemu(options.qemu)
    accel = machine.accelerator(qemu) if options.accel == "auto" else options.accel
    log_path = pathlib.Path(options.log)
    log_path.parent.mkdir(parents=True, exist_ok=True)
    progress = Progress(options.quiet)
    watcher = Watcher(options.allow)
    with contextlib.ExitStack() as stack:
        directory = pathlib.Path(stack.enter_context(
            tempfile.TemporaryDirectory(prefix="asyncpager-vm-")))
        command = "run" if options.command == "shell" else options.command
        job = jobs.script(command, options.arguments, options.latency)
        disks.write_input(directory / "input", options.archive, job)
        disks.sparse(directory / "results", 256 << 20)
        disks.sparse(directory / "scratch", options.disk_size)
        line = machine.command(options, qemu, accel, directory)
        log = stack.enter_context(open(log_path, "w", encoding="utf-8"))
        process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, start_new_session=True)
        stack.callback(end, process)
        deadline = time.monotonic() + options.timeout * 60
        console = Console(process, log, watcher, deadline, progress.line)
        progress.say(f"QEMU with {accel}, console log {log_path}")
        try:
            code = live(console, options, directory, progress)
        except Failure as failure:
            raise type(failure)("\n".join([str(failure), *watcher.report()])) from failure
    if watcher.serious():
        raise Trouble("\n".join(["the kernel complained", *watcher.report()]))
    return code


def end(process):
    """Kill QEMU."""
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def live(console, options, directory, progress):
    """Run from power on to power off. Returns the job's exit code."""
    progress.doing = "booting"
    boot(console, options, progress)
    progress.say("logged in")
    place = f"/tmp/vm && tar -xf {machine.INPUT} -C /tmp/vm"
    if options.command == "shell":
        console.send(f"mkdir -p {place}; cd /tmp/vm/asyncpager-*/\n")
        progress.say("the archive is in /tmp/vm; ctrl-] leaves")
        interactive(console)
        return 0
    console.send(f"mkdir -p {place} && sh /tmp/vm/vm-job\n")
    console.expect({"begin": f"^{re.escape(jobs.BEGIN)}$"}, 120, "unpacking the archive in the VM")
    progress.doing = f"running {options.command}"
    _, match = console.expect({"end": f"^{re.escape(jobs.END)}(\\d+)$"}, options.timeout * 60,
                              f"running the {options.command} in the VM", progress.tick)
    code = int(match[1])
    progress.say(f"the {options.command} ended with {code}")
    console.send("sync; poweroff\n")
    console.drain(60)
    end_of_life(console)
    names = disks.read_results(directory / "results", options.results)
    if names:
        progress.say(f"results in {options.results}: {', '.join(sorted(names))}")
    return 0 if code == 0 else 1


def end_of_life(console):
    """Raise on a panic during shutdown."""
    if console.watcher.fatal:
        raise Trouble("the kernel panicked during shutdown")


def boot(console, options, progress):
    """Answer the prompts of the console until root has a shell."""
    seconds = options.boot_timeout * 60
    begin = time.monotonic()
    asked = set()
    to_loader = list(LOADER)
    while True:
        left = seconds - (time.monotonic() - begin)
        name, _ = console.expect(BOOT, left, "booting", progress.tick)
        if name == "shell":
            return
        if name == "root":
            raise Failure("the kernel does not find its root filesystem: see --root")
        if name in asked and name in ("login", "password"):
            raise Failure("root cannot log in without a password")
        if name == "password":
            raise Failure("root has a password: an official VM image has none")
        if name == "menu" and name not in asked:
            progress.say("at the loader's menu")
            console.send("\x1b")
        elif name == "loader" and "menu" in asked and to_loader:
            console.send(f"{to_loader[0]}\r")
            if "console=" in to_loader.pop(0):
                console.drain(2)
                console.send("\r")
        elif name == "login":
            progress.say("at the login prompt")
            console.send("root\n")
        elif name == "single":
            console.send("\n")
        asked.add(name)


def interactive(console):
    """Connect the terminal to the console until QEMU ends or ctrl-] is typed."""
    if not sys.stdin.isatty():
        raise Failure("a shell needs a terminal: use `run COMMAND`")
    stdin, out = sys.stdin.fileno(), console.process.stdout.fileno()
    saved = termios.tcgetattr(stdin)
    console.send("\n")
    try:
        tty.setraw(stdin)
        while time.monotonic() < console.deadline:
            ready, _, _ = select.select([stdin, out], [], [], 1.0)
            if out in ready:
                data = os.read(out, 65536)
                if not data:
                    return
                os.write(sys.stdout.fileno(), data)
                console.take(data)
            if stdin in ready:
                data = os.read(stdin, 1024)
                if not data or LEAVE in data:
                    return
                console.send(data.decode("utf-8", "replace"))
    finally:
        termios.tcsetattr(stdin, termios.TCSADRAIN, saved)
