"""What every end-to-end script shares: servers started and ended, checks counted, figures printed.

Environment: VAIO (default target/release/vaio) and VAIO_HOST (default target/release/examples/host, the
example program that also knows audit, throttle, encrypt, noop and fault).
A script ends with `finish()`: it prints `N passed, N failed` and exits 1 if anything failed.
"""

import atexit
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

TOP = pathlib.Path(__file__).resolve().parents[2]
VAIO = os.environ.get("VAIO", str(TOP / "target/release/vaio"))
VAIO_HOST = os.environ.get("VAIO_HOST", str(TOP / "target/release/examples/host"))
START_TIMEOUT_S = 20
STOP_TIMEOUT_S = 30

# /tmp and short: a Unix socket's path has at most 107 bytes.
scratch = pathlib.Path(tempfile.mkdtemp(prefix="vaio-e2e-", dir=os.environ.get("E2E_TMP", "/tmp")))
_servers = []
_passed = 0
_failed = 0


def ok(condition, name, detail=""):
    """Count one check; say so when it failed."""
    global _passed, _failed
    if condition:
        _passed += 1
        print(f"ok      {name}", flush=True)
    else:
        _failed += 1
        print(f"FAILED  {name}: {detail}", flush=True)
    return bool(condition)


def figure(name, value, unit):
    print(f"figure {name} {value} {unit}", flush=True)


def finish():
    print(f"{_passed} passed, {_failed} failed", flush=True)
    sys.exit(1 if _failed or not _passed else 0)


def sh(command, timeout=120, check=True, env=None):
    """Run a shell command; return its CompletedProcess. A failure is an exception that shows its output."""
    done = subprocess.run(["bash", "-c", "set -o pipefail; " + command], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=timeout, env=env)
    if check and done.returncode:
        raise RuntimeError(f"`{command}` ended with {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done


def runs(name, command, timeout=120):
    """A check that a command exits 0; return its stdout."""
    try:
        done = sh(command, timeout, check=False)
        ok(done.returncode == 0, name, f"exit {done.returncode}: {(done.stdout + done.stderr)[-1500:]}")
        return done.stdout
    except subprocess.TimeoutExpired:
        ok(False, name, f"no end in {timeout} s: {command}")
        return ""


class Server:
    """A server process of ours: ready when its socket answers (and, for vaio, `ready` was printed)."""

    def __init__(self, argv, path, ready=None, env=None):
        self.argv, self.socket = [str(a) for a in argv], pathlib.Path(path)
        self.uri = f"nbd+unix:///?socket={path}"
        self.log = scratch / f"server-{len(_servers)}.log"
        self.out = open(self.log, "wb")
        self.proc = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL, stdout=self.out, stderr=self.out,
                                     env={**os.environ, **(env or {})})
        _servers.append(self)
        end = time.monotonic() + START_TIMEOUT_S
        while not (ready in self.said() if ready else self._answers()):
            if self.proc.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"server not ready: {shlex.join(self.argv)}\n{self.said()[-2000:]}")
            time.sleep(0.005)

    def _answers(self):
        """Whether it listens. Asked of the kernel: nbdkit can die of a client that connects and leaves at once."""
        listening = "00010000"
        return any(line.endswith(f" {self.socket}") and line.split()[3] == listening
                   for line in pathlib.Path("/proc/net/unix").read_text().splitlines())

    @property
    def pid(self):
        return self.proc.pid

    def said(self):
        return self.log.read_text(errors="replace")

    def alive(self):
        return self.proc.poll() is None

    def ended(self, within_s=5):
        """Whether it has ended, or does so soon: a process that dies closes its socket before it counts as dead."""
        end = time.monotonic() + within_s
        while self.alive() and time.monotonic() < end:
            time.sleep(0.005)
        return not self.alive()

    def stop(self, sig=signal.SIGTERM):
        """Signal (None: it has got one), wait, return the exit code (None: it had to be killed)."""
        if self.alive() and sig is not None:
            self.proc.send_signal(sig)
        try:
            code = self.proc.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.proc.kill()
            self.proc.wait()
            code = None
        self.out.close()
        if not isinstance(self, Vaio):  # vaio must cope with the sockets of a killed one
            self.socket.unlink(missing_ok=True)
        return code

    def kill9(self):
        return self.stop(signal.SIGKILL)

    def rss_kib(self):
        status = pathlib.Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status).group(1))

    def fds(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))


class Vaio(Server):
    """`vaio serve DISK` with NBD and control sockets in the scratch folder."""

    def __init__(self, disk, *args, name="vaio", program=None, env=None):
        self.program = program or VAIO_HOST
        self.control = scratch / f"{name}.control"
        path = scratch / f"{name}.nbd"
        super().__init__([self.program, "serve", "--disk", disk, "--nbd", path, "--control", self.control, *args],
                         path, ready="ready", env=env)

    def ask(self, verb, *args, check=True, timeout=30):
        """`vaio VERB CONTROL ARGS`: the CompletedProcess."""
        done = subprocess.run([self.program, verb, str(self.control), *map(str, args)], stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=timeout)
        if check and done.returncode:
            raise RuntimeError(f"vaio {verb} {args}: exit {done.returncode}: {done.stderr}{done.stdout}")
        return done

    def disk(self, verb):
        """What `vaio VERB CONTROL --json` says of the (first) disk."""
        said = json.loads(self.ask(verb, "--json").stdout)
        return said["disks"][0] if "disks" in said else said


def nbdkit(*args, name="nbdkit", env=None):
    """nbdkit in the foreground on a Unix socket in the scratch folder."""
    path = scratch / f"{name}.nbd"
    return Server(["nbdkit", "-f", "-U", path, *args], path, env=env)


def blank(name, size):
    """A sparse file of `size` bytes."""
    path = scratch / name
    with open(path, "wb") as file:
        file.truncate(size)
    return path


def key_file():
    """A key for the encrypt filter (64 bytes: AES-256-XTS), mode 0600."""
    path = scratch / "key"
    if not path.exists():
        path.touch(mode=0o600)
        path.write_bytes(bytes(range(7, 71)))
    return path


def stack(*names):
    """Arguments for the filters by name, in policy order; no name: `--filter none`."""
    settings = {
        "audit": f"audit:path={scratch}/audit.jsonl",
        "throttle": "throttle",
        "encrypt": f"encrypt:key_file={key_file()}",
    }
    args = [part for name in names for part in ("--filter", settings.get(name, name))]
    return args or ["--filter", "none"]


def remembered():
    """Arguments for a disk that is no file: where vaio keeps what it must remember of it."""
    (scratch / "state").mkdir(exist_ok=True)
    return ["--state-dir", scratch / "state"]


def forget():
    """The next disk is a new one."""
    shutil.rmtree(scratch / "state", ignore_errors=True)


FULL_STACK = ("audit", "throttle", "encrypt")


def fio(uri, *args, timeout=300):
    """Run fio over NBD; return its JSON (its nbd engine prints a line before it)."""
    command = ["fio", "--name=e2e", "--ioengine=nbd", f"--uri={uri}", "--output-format=json", *args]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout,
                          cwd=scratch)
    start = done.stdout.find("{")
    report = json.loads(done.stdout[start:]) if start >= 0 else {"jobs": []}
    report["exit"], report["stderr"] = done.returncode, done.stderr
    return report


def _clean():
    for server in _servers:
        if server.alive():
            server.proc.kill()
            server.proc.wait()
    if _failed or os.environ.get("E2E_KEEP"):
        for server in _servers:
            print(f"--- {shlex.join(server.argv)}\n{server.said()[-1500:]}", file=sys.stderr)
    if os.environ.get("E2E_KEEP"):
        print(f"kept: {scratch}", file=sys.stderr)
    else:
        shutil.rmtree(scratch, ignore_errors=True)


atexit.register(_clean)
for _signal in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(_signal, lambda number, _: sys.exit(128 + number))
# An exception in a helper thread must fail the script as one in the main thread does.
threading.excepthook = lambda args: ok(False, f"thread {args.thread.name}", repr(args.exc_value))
