# SPDX-License-Identifier: BSD-2-Clause
"""Disks of the VM: files go in and come out as tar archives written raw onto a disk."""

import gzip
import io
import lzma
import pathlib
import shutil
import tarfile

from .errors import Failure, NoInput

SECTOR = 512


def image_format(path):
    """qcow2 or raw, by the first bytes of the file."""
    try:
        with open(path, "rb") as file:
            magic = file.read(6)
    except OSError as error:
        raise NoInput(f"cannot read the image {path}: {error.strerror}") from error
    if magic[:4] == b"QFI\xfb":
        return "qcow2"
    if magic[:2] == b"\x1f\x8b" or magic == lzma_magic():
        raise NoInput(f"{path} is compressed: unpack it first (unxz, gunzip)")
    if len(magic) < 6:
        raise NoInput(f"{path} is too short for a disk image")
    return "raw"


def lzma_magic():
    """The first bytes of an .xz file."""
    return lzma.compress(b"")[:6]


def write_input(path, archive, job):
    """Write the archive, as plain tar, and the job onto a new disk."""
    try:
        with gzip.open(archive) as packed, tarfile.open(fileobj=packed, mode="r|") as source:
            with tarfile.open(path, "w") as target:
                for member in source:
                    target.addfile(member, source.extractfile(member) if member.isreg() else None)
                member = tarfile.TarInfo("vm-job")
                member.size, member.mode = len(job), 0o755
                target.addfile(member, io.BytesIO(job))
    except (OSError, EOFError, tarfile.TarError) as error:
        raise NoInput(f"cannot read the archive {archive}: {error}: run make freebsd") from error
    sparse(path, -(-path.stat().st_size // (1 << 20)) << 20)


def sparse(path, size):
    """Make a sparse disk of this many bytes."""
    with open(path, "ab") as file:
        file.truncate(size)


def read_results(disk, directory):
    """Extract the regular files of the VM into a new directory. Returns their names."""
    directory = pathlib.Path(directory)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    names, members = [], 0
    try:
        with tarfile.open(disk, "r:") as archive:
            for member in archive:
                members += 1
                name = pathlib.PurePosixPath(member.name)
                if not member.isreg() or name.is_absolute() or ".." in name.parts:
                    continue
                target = directory / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with open(target, "wb") as file:
                    shutil.copyfileobj(archive.extractfile(member), file)
                names.append(str(name))
    except tarfile.TarError as error:
        raise Failure(f"cannot read the VM's results: {error}") from error
    # The archive has at least the entry of its directory.
    if members == 0:
        raise Failure("the VM has not written its results")
    return names
