"""The stamped checker: a pure model of what each block may hold, and a load over libnbd that keeps to it.

Every block written carries (run, op, block, version, crc), repeated over the whole block, so that a lost, torn,
misplaced or resurrected write is seen and named. IO in flight never overlaps, so the versions of one block are
totally ordered and the legal content is known exactly:

* live: the last acknowledged write; after a discard also zero, and once read as zero it stays zero.
* after a crash: every version from the last *guaranteed* one on. Guaranteed: acknowledged with FUA, or acknowledged
  before the submission of a flush that succeeded. A discard adds zero and removes nothing.
"""

import select
import struct
import zlib

import nbd

ZERO = 0  # the version of a block of zeroes; a write's version is its op number, from 1
RECORD = struct.Struct("<8sQQQQ20xI")
MAGIC = b"VAIOSTMP"
assert RECORD.size == 64


def stamp(run, op, block, version, size):
    """The content of one block."""
    body = RECORD.pack(MAGIC, run, op, block, version, 0)[:-4]
    return (body + struct.pack("<I", zlib.crc32(body))) * (size // RECORD.size)


def read_stamp(content, run, block):
    """(op, None) for a sound block, ZERO for zeroes; (None, what is wrong) otherwise."""
    if not any(content):
        return ZERO, None
    record = content[:RECORD.size]
    magic, its_run, op, its_block, version, crc = RECORD.unpack(record)
    if magic != MAGIC or zlib.crc32(record[:-4]) != crc:
        return None, f"no stamp: {record[:16].hex()}..."
    if record * (len(content) // RECORD.size) != content:
        return None, f"torn: begins with op {op}, another part differs"
    if its_run != run or its_block != block:
        return None, f"misplaced: stamp of run {its_run} block {its_block} version {version}"
    return op, None


class Model:
    """What each block may hold now (`live`) and after a crash (`history`). No IO, no time."""

    def __init__(self, blocks):
        self.live = [{ZERO} for _ in range(blocks)]
        # Per block, oldest first: [version, when acknowledged (None: never), is a discard].
        self.history = [[[ZERO, 0, False]] for _ in range(blocks)]
        self.undecided = set()  # blocks with more than one version in their history

    def submitted(self, blocks, version, discard):
        """Record an IO that may land from now on; returns its entries for `acked`."""
        entries = []
        for block in blocks:
            entry = [version, None, discard]
            self.history[block].append(entry)
            self.live[block] = self.live[block] | {version}
            self.undecided.add(block)
            entries.append(entry)
        return entries

    def acked(self, blocks, entries, now, fua):
        for block, entry in zip(blocks, entries):
            entry[1] = now
            if not entry[2]:
                self.live[block] = {entry[0]}
            if fua and not entry[2]:
                self._guarantee(block, now)

    def flushed(self, submitted_at):
        """A flush submitted at `submitted_at` succeeded."""
        for block in list(self.undecided):
            self._guarantee(block, submitted_at)

    def _guarantee(self, block, until):
        entries = self.history[block]
        for at in range(len(entries) - 1, 0, -1):
            _, acked, discard = entries[at]
            if acked is not None and acked <= until and not discard:
                del entries[:at]
                break
        if len(entries) == 1:
            self.undecided.discard(block)

    def seen(self, block, version):
        """A read showed `version`: None, or what is wrong with that."""
        if version not in self.live[block]:
            return f"shows op {version}, allowed {sorted(self.live[block])}"
        if version == ZERO:
            self.live[block] = {ZERO}  # once zero, zero until written
        return None

    def recovered(self, block, version):
        """The first read after a crash showed `version`: settle the block, or say what is wrong."""
        entries = self.history[block]
        at = next((i for i in range(len(entries) - 1, -1, -1) if entries[i][0] == version), None)
        if at is None:
            self.history[block], self.live[block] = [[version, 0, False]], {version}
            self.undecided.discard(block)
            return f"shows op {version} after the crash, legal {[(v, a) for v, a, _ in entries]} (op, acked at)"
        # A discard newer than what is seen may still take effect: the block reads old or zero until written.
        later = [e for e in entries[at + 1:] if e[2]][:1] if version != ZERO else []
        self.history[block] = [[version, 0, False]] + later
        self.live[block] = {version} | {e[0] for e in later}
        self.undecided.discard(block)
        if later:
            self.undecided.add(block)
        return None


MIX = {"read": 30, "write": 40, "trim": 8, "zero": 6, "zero_no_hole": 6, "write_fua": 5, "zero_fua": 2, "flush": 3}


class Load:
    """A random load over one or more connections to one export, checked against a `Model`."""

    def __init__(self, uri, rng, run=1, block=4096, connections=1, mix=None, depth=16, span_max=8, blocks=None):
        self.rng, self.run, self.size, self.depth, self.span_max = rng, run, block, depth, span_max
        self.mix = mix or MIX
        self.connections, self.wanted_blocks = connections, blocks
        self.generation = 0  # of connections
        self.clock = 0      # advances with every submission and every reply
        self.ops = 0
        self.faults = []    # what was wrong, in words
        self.errors = 0     # IO that failed
        self.counts = {}
        self.acks = {}
        self.log = []       # (clock, what, op, first block, blocks)
        self.versions = {}
        self.model = None
        self.connect(uri)
        self.wipe()
        self.model = Model(self.blocks)

    def connect(self, uri):
        """Open the connections (again, after a crash: what was in flight stays unacknowledged)."""
        self.generation += 1
        self.handles = []
        for _ in range(self.connections):
            handle = nbd.NBD()
            handle.connect_uri(uri)
            self.handles.append(handle)
        first = self.handles[0]
        if self.connections > 1 and not first.can_multi_conn():
            self.handles = self.handles[:1]
        self.size = max(self.size, first.get_block_size(nbd.SIZE_MINIMUM))
        self.blocks = min(first.get_size() // self.size, self.wanted_blocks or 1 << 62)
        self.busy = set()
        self.in_flight = 0
        able = {"trim": first.can_trim(), "zero": first.can_zero(), "zero_no_hole": first.can_zero(),
                "write_fua": first.can_fua(), "zero_fua": first.can_fua() and first.can_zero(),
                "flush": first.can_flush()}
        self.kinds = [kind for kind in self.mix if able.get(kind, True)]

    def close(self):
        self.handles = []

    def wipe(self):
        """Write zeroes over all blocks and flush: what a fresh disk holds under encryption is not zero."""
        step = max(1, (1 << 20) // self.size)
        for first in range(0, self.blocks, step):
            count = min(step, self.blocks - first)
            self.handles[0].pwrite(bytes(count * self.size), first * self.size)
        self.handles[0].flush()

    def run_ops(self, count):
        """Exactly `count` more operations, then wait for all replies. A dead connection is a fault."""
        target = self.ops + count
        try:
            self._pump(lambda: self.ops >= target)
            self.drain()
        except nbd.Error as problem:
            self.faults.append(f"after {self.ops} ops: {problem}")

    def run_until(self, stop):
        """Keep the load up until `stop()`; what is in flight then stays in flight."""
        self._pump(stop)

    def drain(self):
        while self.in_flight and not self.faults:
            self._poll(1000)

    def _pump(self, stop):
        while not stop() and len(self.faults) < 10:
            while self.in_flight < self.depth and not stop():
                self._submit()
            self._poll(10)

    def _poll(self, timeout_ms):
        poller = select.poll()
        by_fd = {}
        for handle in self.handles:
            direction = handle.aio_get_direction()
            events = (select.POLLIN if direction & nbd.AIO_DIRECTION_READ else 0) | \
                     (select.POLLOUT if direction & nbd.AIO_DIRECTION_WRITE else 0)
            fd = handle.aio_get_fd()
            by_fd[fd] = handle
            poller.register(fd, events)
        for fd, events in poller.poll(timeout_ms):
            handle = by_fd[fd]
            if events & (select.POLLIN | select.POLLHUP | select.POLLERR):
                handle.aio_notify_read()
            elif events & select.POLLOUT:
                handle.aio_notify_write()

    def _extent(self):
        """Blocks that no IO in flight touches, or None after a few tries."""
        for _ in range(20):
            count = self.rng.randint(1, min(self.span_max, self.blocks))
            first = self.rng.randint(0, self.blocks - count)
            blocks = range(first, first + count)
            if self.busy.isdisjoint(blocks):
                return blocks
        return None

    def _submit(self):
        kind = self.rng.choices(self.kinds, [self.mix[k] for k in self.kinds])[0]
        handle = self.rng.choice(self.handles)
        blocks = range(0) if kind == "flush" else self._extent()
        if blocks is None:
            return self._poll(1)
        self.ops += 1
        self.clock += 1
        self.in_flight += 1
        self.busy.update(blocks)
        self.counts[kind] = self.counts.get(kind, 0) + 1
        op, at = self.ops, self.clock
        self.log.append((at, kind, op, blocks.start, len(blocks)))
        offset, length = blocks.start * self.size, len(blocks) * self.size
        fua = kind.endswith("_fua")
        flags = nbd.CMD_FLAG_FUA if fua else 0
        if kind == "flush":
            return handle.aio_flush(self._on(kind, op, lambda: self.model.flushed(at)))
        if kind == "read":
            buffer = nbd.Buffer(length)
            return handle.aio_pread(buffer, offset, self._on(kind, op, lambda: self._check(
                blocks, buffer.to_bytearray(), self.model.seen), blocks))
        version = op if kind.startswith("write") else ZERO
        entries = self.model.submitted(blocks, version, kind == "trim")
        done = self._on(kind, op, lambda: self.model.acked(blocks, entries, self.clock, fua), blocks)
        if kind.startswith("write"):
            content = b"".join(stamp(self.run, op, b, self._version(b), self.size) for b in blocks)
            return handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(content)), offset, done, flags)
        if kind == "trim":
            return handle.aio_trim(length, offset, done)
        flags |= nbd.CMD_FLAG_NO_HOLE if kind == "zero_no_hole" else 0
        return handle.aio_zero(length, offset, done, flags)

    def _version(self, block):
        self.versions[block] = self.versions.get(block, 0) + 1
        return self.versions[block]

    def _on(self, kind, op, success, blocks=range(0)):
        """The completion: counts the reply, frees the blocks, tells the model."""
        def completed(error):
            if generation != self.generation:
                return 1  # of a connection that was given up: stays unacknowledged
            self.clock += 1
            self.in_flight -= 1
            self.busy.difference_update(blocks)
            self.log.append((self.clock, "error" if error.value else "ack", op, blocks.start, len(blocks)))
            if error.value:
                self.errors += 1
            else:
                self.acks[kind] = self.acks.get(kind, 0) + 1
                success()
            return 1
        generation = self.generation
        return completed

    def _check(self, blocks, content, judge):
        for at, block in enumerate(blocks):
            version, wrong = read_stamp(bytes(content[at * self.size:(at + 1) * self.size]), self.run, block)
            wrong = wrong or judge(block, version)
            if wrong:
                self.fault(block, wrong)

    def fault(self, block, wrong):
        trail = [entry for entry in self.log if entry[4] == 0 or entry[3] <= block < entry[3] + entry[4]][-12:]
        self.faults.append(f"block {block} {wrong}; last log entries (clock, what, op, first, blocks): {trail}")

    def verify_all(self, after_crash=False):
        """Read the whole disk: against the live model, or, after a crash, settle every block."""
        judge = self.model.recovered if after_crash else self.model.seen
        step = max(1, (1 << 20) // self.size)
        for first in range(0, self.blocks, step):
            blocks = range(first, min(first + step, self.blocks))
            content = self.handles[0].pread(len(blocks) * self.size, first * self.size)
            self._check(blocks, content, judge)


def zero_by_map(uri):
    """The extents that `base:allocation` calls zero: [(offset, length)]."""
    handle = nbd.NBD()
    handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    handle.connect_uri(uri)
    zeroes, at = [], 0
    while at < handle.get_size():
        entries = []
        handle.block_status(min(handle.get_size() - at, 1 << 30), at, lambda c, o, e, err: entries.extend(e) and 0)
        for length, flags in zip(entries[::2], entries[1::2]):
            if flags & nbd.STATE_ZERO:
                zeroes.append((at, length))
            at += length
    return zeroes
