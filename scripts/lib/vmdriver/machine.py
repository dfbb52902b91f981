# SPDX-License-Identifier: BSD-2-Clause
"""Finds QEMU, chooses the accelerator, and makes the command line."""

import pathlib
import shutil
import subprocess
import tempfile

from . import disks
from .errors import NoInput, Unavailable

PACKAGES = pathlib.Path(__file__).resolve().parents[1] / "packages"

# A boot sector that ends QEMU: mov dx, 0xf4; mov al, 0; out dx, al; hlt.
PROBE = bytes([0xBA, 0xF4, 0x00, 0xB0, 0x00, 0xEE, 0xF4]).ljust(510, b"\0") + b"\x55\xaa"
PROBE_SECONDS = 2

# The disks' names in the guest, in the order of the -drive options.
INPUT, RESULTS, SCRATCH = "/dev/vtbd1", "/dev/vtbd2", "/dev/vtbd3"


def find_qemu(program):
    """The path of QEMU."""
    path = shutil.which(program)
    if path is None:
        raise Unavailable(f"no {program}: install {package('qemu')}, or name another QEMU with --qemu")
    return path


def package(program):
    """The Debian package that scripts/lib/packages lists for a program."""
    for line in PACKAGES.read_text().splitlines():
        name, debian, *_ = (*line.split("|"), "", "")
        if name.strip() == program:
            return debian.strip()
    return program


def accelerator(qemu):
    """kvm if a boot sector runs in it within PROBE_SECONDS, else tcg: on some machines
    /dev/kvm exists but is slower than TCG."""
    if not pathlib.Path("/dev/kvm").exists():
        return "tcg"
    with tempfile.NamedTemporaryFile(prefix="asyncpager-vm-") as sector:
        sector.write(PROBE)
        sector.flush()
        command = [qemu, "-accel", "kvm", "-display", "none", "-nic", "none", "-serial", "none",
                   "-monitor", "none", "-device", "isa-debug-exit,iobase=0xf4,iosize=1",
                   "-drive", f"file={sector.name},format=raw,if=ide,snapshot=on"]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True,
                                  timeout=PROBE_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return "tcg"
        # isa-debug-exit turns the byte 0 into exit code 1.
        return "kvm" if done.returncode == 1 and b"failed" not in done.stderr else "tcg"


def command(options, qemu, accel, directory):
    """QEMU's command line: no network, no window, the console on standard output."""
    line = [
        qemu, "-name", "asyncpager", "-machine", "pc,graphics=off", "-display", "none", "-vga", "none",
        "-nic", "none", "-monitor", "none", "-serial", "stdio", "-no-reboot",
        "-smp", str(options.cpus), "-m", options.memory, "-device", "virtio-rng-pci",
        "-accel", "tcg,thread=multi" if accel == "tcg" else accel,
    ]
    if accel == "kvm":
        line += ["-cpu", "host"]
    if options.image:
        root = options.image
    else:
        root = options.rootfs
        for path in (options.kernel, options.rootfs):
            if not pathlib.Path(path).is_file():
                raise NoInput(f"no such file: {path}")
        line += ["-kernel", options.kernel, "-append",
                 "boot_serial=YES console=comconsole kern.hz=1000 "
                 f"vfs.root.mountfrom={options.root}"]
    # snapshot=on: writes go to an unnamed overlay, which ends with QEMU.
    drives = [f"file={escaped(root)},format={disks.image_format(root)},snapshot=on"]
    drives += [f"file={directory}/{name},format=raw,cache=unsafe"
               for name in ("input", "results", "scratch")]
    for drive in drives:
        line += ["-drive", f"if=virtio,{drive}"]
    return line


def escaped(path):
    """A path in an option of QEMU."""
    return str(path).replace(",", ",,")
