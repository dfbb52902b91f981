# SPDX-License-Identifier: BSD-2-Clause
"""The command line of scripts/vm."""

import argparse
import pathlib
import re
import signal
import sys

from . import session
from .errors import Failure, Usage

ROOT = pathlib.Path(__file__).resolve().parents[3]

DESCRIPTION = """\
Runs FreeBSD in QEMU with the archive of `make freebsd`, without a network.

commands:
  test [FILTER ...]     the kyua suite
  bench [ARGUMENT ...]  sendbench with these arguments on the test disk, with the
                        module loaded; without arguments: all workloads
  run COMMAND           a shell command in the archive's directory; the files in
                        $results are copied out, $DISK is a disk to overwrite
  shell                 the console, until ctrl-] or poweroff
"""

EPILOG = """\
exit codes: 0 success; 1 a test or the VM failed; 2 the kernel panicked or reported a lock order
reversal or a similar error; 3 timeout; 64 bad arguments; 66 a file is missing; 69 no QEMU.

example: scripts/vm --image FreeBSD-14.2-RELEASE-amd64.qcow2 test
"""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser with sysexits(3)'s code for bad arguments."""

    def error(self, message):
        self.print_usage(sys.stderr)
        self.exit(Usage.code, f"vm: {message}: see --help\n")


def size(text):
    """Bytes: 512m, 4g."""
    match = re.fullmatch(r"(\d+)([kmgKMG]?)", text)
    if not match or int(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"not a size: {text}")
    return int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[match[2].lower()]


def positive(text):
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"not a number above 0: {text}")
    return value


def milliseconds(text):
    """A latency: gnop(8) takes whole milliseconds only."""
    value = positive(text)
    if value != int(value):
        raise argparse.ArgumentTypeError(f"not a whole number of milliseconds: {text}")
    return int(value)


def regex(text):
    """A regular expression."""
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"not a regular expression: {text}: {error}") from error
    return text


def parser():
    """All options."""
    args = Parser("scripts/vm", description=DESCRIPTION, epilog=EPILOG,
                  formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--image", metavar="FILE",
                      help="a VM image of FreeBSD, qcow2 or raw; stays unchanged")
    args.add_argument("--kernel", metavar="FILE", help="a kernel to boot without a loader")
    args.add_argument("--rootfs", metavar="FILE",
                      help="the root disk for --kernel; stays unchanged")
    args.add_argument("--root", metavar="FS:DEVICE", default="ufs:/dev/vtbd0",
                      help="the root filesystem for --kernel (default %(default)s)")
    args.add_argument("--archive", metavar="FILE",
                      default=str(ROOT / "target/freebsd/asyncpager-14-amd64.tar.gz"),
                      help="the archive of `make freebsd` (default target/freebsd/...)")
    args.add_argument("--disk-size", metavar="SIZE", type=size, default="4g",
                      help="size of the test disk (default %(default)s)")
    args.add_argument("--latency", metavar="MS", type=milliseconds,
                      help="delay of each transfer of the test disk in milliseconds, by gnop(8)")
    args.add_argument("--cpus", metavar="N", type=int, default=2, help="CPUs (default %(default)s)")
    args.add_argument("--memory", metavar="SIZE", default="2G", help="memory (default %(default)s)")
    args.add_argument("--accel", choices=["auto", "kvm", "tcg"], default="auto",
                      help="auto: KVM if a boot sector runs in it within 2 s, else TCG")
    args.add_argument("--qemu", metavar="PROGRAM", default="qemu-system-x86_64",
                      help="QEMU (default %(default)s)")
    args.add_argument("--timeout", metavar="MINUTES", type=positive, default=90.0,
                      help="for the whole run (default %(default)s)")
    args.add_argument("--boot-timeout", metavar="MINUTES", type=positive, default=15.0,
                      help="until root has logged in (default %(default)s)")
    args.add_argument("--log", metavar="FILE", default=str(ROOT / "target/vm/console.log"),
                      help="copy of the console (default target/vm/console.log)")
    args.add_argument("--results", metavar="DIR", default=str(ROOT / "target/vm/results"),
                      help="a directory that the results of the VM replace (default target/vm/results)")
    args.add_argument("--allow", metavar="REGEX", type=regex,
                      help="ignore lock order reversals with a matching line")
    args.add_argument("--quiet", action="store_true", help="print errors only")
    args.add_argument("command", choices=["test", "bench", "run", "shell"])
    args.add_argument("arguments", nargs=argparse.REMAINDER)
    return args


def checked(options, args):
    """Checks that argparse cannot make."""
    if bool(options.image) == bool(options.kernel):
        args.error("either --image or --kernel with --rootfs")
    if bool(options.kernel) != bool(options.rootfs):
        args.error("--kernel and --rootfs go together")
    if not 1 <= options.cpus <= 64:
        args.error(f"not a number of CPUs: {options.cpus}")
    if options.arguments[:1] == ["--"]:
        del options.arguments[0]
    if options.command == "run" and not options.arguments:
        args.error("run needs a command")
    if options.command == "shell" and options.arguments:
        args.error("shell takes no arguments")
    return options


def stop(number, _):
    """Signal handler: end QEMU and remove temporary files."""
    raise SystemExit(128 + number)


def main(arguments):
    """The exit code."""
    args = parser()
    options = checked(args.parse_args(arguments), args)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    try:
        return session.run(options)
    except Failure as failure:
        print(f"vm: {failure}", file=sys.stderr)
        return failure.code
    except KeyboardInterrupt:
        return 130
