"""A real file system of the kernel on a disk of ours: the NBD export is a file by nbdfuse, a loop device on that file is
mounted. Needs root, /dev/fuse and /dev/loop-control. The kernel's flushes and discards reach the export as a guest's do.

`Versions` is the workload whose state after a crash is known exactly: one thread writes version 1, 2, 3... each as a new
file that is fsynced, renamed over one of a few slots, and made durable by fsync of the folder. If version m is visible,
everything before m had been durable when m began, so a crash image must show, in every slot, the last version up to m.
"""

import os
import pathlib
import random
import shutil
import subprocess
import threading
import time

from lib import scratch, sh

NEEDED = ("/dev/fuse", "/dev/loop-control")
SLOTS = 24
_mounted = []


def missing():
    """What this machine lacks, in words; empty: nothing."""
    lacks = [path for path in NEEDED if not os.path.exists(path)] + ([] if os.geteuid() == 0 else ["root"])
    return lacks + [tool for tool in ("nbdfuse", "mke2fs", "e2fsck", "losetup") if not shutil.which(tool)]


def content(version, size):
    """What a file of this version holds: every 64 bytes name it and their place."""
    line = b"version %012d at %%012d of %012d" % (version, size)
    return b"".join((line % at).ljust(63) + b"\n" for at in range(0, size, 64))[:size]


def size_of(version):
    """Bytes of a version: mostly small, some large."""
    rng = random.Random(version)
    return rng.choice([64, 100, 4096, 5000, 16384, 65536, 200000, 400000])


class Mount:
    """The export at `uri` as a mounted file system."""

    def __init__(self, uri, make=False, name="guest"):
        self.dir, self.fuse = scratch / f"{name}.mnt", scratch / f"{name}.fuse"
        self.dir.mkdir(exist_ok=True)
        self.fuse.touch()
        self.loop = None
        _mounted.append(self)
        socket = uri.split("socket=")[1]
        self.nbdfuse = subprocess.Popen(["nbdfuse", self.fuse, "--unix", socket], stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 10
        while not os.path.ismount(self.fuse):
            if time.monotonic() > end or self.nbdfuse.poll() is not None:
                raise RuntimeError("nbdfuse does not mount")
            time.sleep(0.005)
        self.loop = sh(f"losetup --find --show {self.fuse}").stdout.strip()
        if make:
            # The journal in front of all files: what writes blocks in the order of their numbers, and not of the
            # guest's flushes, shows a commit without its data.
            sh(f"mke2fs -q -F -t ext4 -E lazy_itable_init=0,lazy_journal_init=0,packed_meta_blocks=1 {self.loop}")
        sh(f"mount -t ext4 -o errors=remount-ro {self.loop} {self.dir}")

    def end(self):
        """Unmount, also where what is below has died; nothing of it stays."""
        if self not in _mounted:
            return
        _mounted.remove(self)
        sh(f"umount {self.dir} || umount -l {self.dir}", check=False)
        if self.loop:
            sh(f"losetup -d {self.loop}", check=False)
        sh(f"umount {self.fuse} || umount -l {self.fuse}", check=False)
        self.nbdfuse.kill()
        self.nbdfuse.wait()

    def crash(self):
        """End after what is below was killed: what the kernel still holds must not reach anything. nbdfuse first."""
        self.nbdfuse.kill()
        self.nbdfuse.wait()
        self.end()


def end_all():
    for one in list(_mounted):
        one.crash()


class Versions(threading.Thread):
    """Writes versions until it is stopped or the disk dies."""

    def __init__(self, folder, first=1, noise=True):
        super().__init__(name="versions")
        self.folder, self.next, self.noise = pathlib.Path(folder), first, noise
        self.durable = first - 1    # the last one that the guest was told is durable
        self.stopped = threading.Event()

    def run(self):
        try:
            (self.folder / "noise").mkdir(exist_ok=True)
            while not self.stopped.is_set():
                self.write(self.next)
                self.durable = self.next
                self.next += 1
                if self.noise:
                    self.disturb(self.next)
        except OSError:
            pass    # the disk is gone: what this topic is about

    def write(self, version):
        """One version, durable when this returns."""
        fresh = self.folder / "fresh"
        with open(fresh, "wb", buffering=0) as file:
            file.write(content(version, size_of(version)))
            os.fsync(file.fileno())
        os.rename(fresh, self.folder / f"slot{version % SLOTS:03}")
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def disturb(self, number):
        """Changes that no one waits for: the journal and the allocator have other things to do, too."""
        rng = random.Random(-number)
        path = self.folder / "noise" / f"n{rng.randrange(40)}"
        if path.exists() and rng.random() < 0.5:
            path.unlink()
        else:
            path.write_bytes(b"noise" * rng.choice([1, 1000, 20000]))

    def stop(self):
        self.stopped.set()
        self.join()


def wrong(folder, least=0):
    """(the last version visible, what is wrong with the files). `least`: the version that must be visible."""
    faults, seen = [], {}
    for slot in range(SLOTS):
        path = pathlib.Path(folder) / f"slot{slot:03}"
        try:
            data = path.read_bytes()
            version = int(data[8:20])
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as problem:
            faults.append(f"{path.name}: {problem}")
            continue
        seen[slot] = version
        if data != content(version, size_of(version)):
            faults.append(f"{path.name}: version {version} is not whole, {len(data)} bytes of {size_of(version)}")
    last = max(seen.values(), default=0)
    if last < least:
        faults.append(f"version {least} was durable, the last one there is {last}")
    for wanted in range(max(1, last - SLOTS + 1), last + 1):
        found = seen.get(wanted % SLOTS)
        if found != wanted:
            faults.append(f"slot{wanted % SLOTS:03}: version {found}, but {wanted} was durable before {last}")
    return last, faults


def checked(image):
    """`e2fsck -fn`: (whether it ends with 0, what it says)."""
    done = sh(f"e2fsck -fn {image}", check=False)
    return done.returncode == 0, (done.stdout + done.stderr)[-400:]
