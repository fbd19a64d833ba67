"""A power cut for the cache: cache device and backing are NBD client devices over nbdkit's cache filter in write-back
mode, so that what was not flushed lives in nbdkit's own temporary file and dies with it. All three processes are killed
at once and started again."""

import signal
import subprocess
import time

from lib import VAIO, Vaio, blank, nbdkit, remembered, scratch

# Never, at once, and in between: whole cuts wait, are under way, and are done.
AGES = ("1h", "5ms", "100ms")
DROPS_FLUSH = ("--filter=fua", "fuamode=discard")


class Power:
    """Disk, cache device and the vaio between; all three go at once."""

    def __init__(self, rng, size, log_size, drops=None):
        self.rng, self.drops = rng, drops
        self.files = {"backing": blank("backing.img", size), "log": blank("log.img", log_size)}
        self.top = None
        self.start_below()
        self.start_top()

    def start_below(self):
        self.below = {}
        for name, file in self.files.items():
            drop = DROPS_FLUSH if name == self.drops else ("", "")
            words = [drop[0], "--filter=cache", "file", file, "cache=writeback", "cache-min-block-size=4K", drop[1]]
            self.below[name] = nbdkit(*(word for word in words if word), name=name)

    def arguments(self):
        cache = f"cache:file={self.below['log'].uri},dirty_age_max={self.rng.choice(AGES)}"
        return ["--filter", cache, *remembered()]

    def start_top(self):
        began = time.monotonic()
        self.top = Vaio(self.below["backing"].uri, *self.arguments(), program=VAIO)
        self.uri, self.start_s = self.top.uri, time.monotonic() - began

    def cut(self, others=()):
        servers = [*self.below.values(), *others, *([self.top] if self.top else [])]
        processes = [getattr(one, "proc", one) for one in servers]
        self.rng.shuffle(processes)
        for process in processes:
            process.send_signal(signal.SIGKILL)
        for one in servers:
            one.kill9() if hasattr(one, "kill9") else one.wait()
        self.top = None

    def start_and_cut(self, argv, within_s):
        """Start a program that recovers and cut the power meanwhile; whether it was not through by then."""
        log = open(scratch / "recovering.log", "w+b")
        process = subprocess.Popen([str(word) for word in argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        time.sleep(self.rng.uniform(0.1, 1.0) * within_s)
        early = process.poll() is None and b"ready" not in (scratch / "recovering.log").read_bytes()
        self.cut([process])
        log.close()
        return early

    def serve(self):
        return [VAIO, "serve", "--disk", self.below["backing"].uri, "--nbd", scratch / "second.nbd",
                "--control", scratch / "second.control", "--name", "disk", *self.arguments()]

    def recover(self):
        return [VAIO, "cache", "recover", self.below["log"].uri, "--onto", self.below["backing"].uri,
                "--sidecar", scratch / "state/disk.vaio"]
