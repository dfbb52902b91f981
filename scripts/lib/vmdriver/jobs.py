# SPDX-License-Identifier: BSD-2-Clause
"""The job: a shell script that the VM runs beside the archive."""

import shlex

from . import machine

BEGIN = "vm-job: begin"
END = "vm-job: end, exit code "

SCRIPT = """#!/bin/sh
echo '{begin}'
export TERM=dumb LC_ALL=C DISK={disk}
top=$(cd "$(dirname "$0")" && pwd)
results=$top/results
mkdir -p "$results"
cd "$top"/asyncpager-*/ || exit 1
archive=$PWD
finish() {{
	code=$?
	tar -cf {results} -C "$results" . || code=1
	sync
	echo "{end}$code"
}}
trap finish EXIT
trap 'exit 130' INT
{prepare}
{body}
"""

LATENCY = """kldstat -q -m g_nop || kldload geom_nop
gnop create -d {latency} -q 100 -x 100 {disk} || exit 1
DISK={disk}.nop
"""

TEST = """./run-tests disk="$DISK" -- {arguments}
code=$?
cp tests/results.db tests/failures.txt "$results/"
(exit "$code")
"""

# sendbench uses the test disk unless the arguments name another place.
BENCH_DEFAULT = ["compare", "--save", "result.json", "--report", "report.html"]
BENCH = """kldload ./asyncpager.ko || exit 1
cd "$results"
"$archive/sendbench" {arguments}{place}
code=$?
kldunload asyncpager || code=1
(exit "$code")
"""

RUN = "export results archive\n{arguments}\n"


def script(command, arguments, latency):
    """The job for a command of scripts/vm, as bytes."""
    body = {"test": TEST, "bench": BENCH, "run": RUN}[command]
    place = ""
    if command == "bench":
        arguments = arguments or BENCH_DEFAULT
        if not {"--device", "--dir", "--help", "report"} & set(arguments):
            place = ' --device "$DISK"'
    quoted = " ".join(arguments) if command == "run" else shlex.join(arguments)
    prepare = LATENCY.format(latency=latency, disk=machine.SCRATCH) if latency else ""
    text = SCRIPT.format(begin=BEGIN, end=END, disk=machine.SCRATCH, results=machine.RESULTS,
                         prepare=prepare, body=body.format(arguments=quoted, place=place))
    return text.encode()
