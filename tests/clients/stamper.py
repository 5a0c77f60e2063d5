#!/usr/bin/python3
"""Writes stamped sectors to an NBD export through libnbd, and notes when each operation was asked for and answered.

Every sector written says which operation wrote it:

    0        8      16       24      32      40                508    512
    | magic  | run   | number | lba   | writer | filler          | crc |    little endian, CRC-32 of what precedes it

The trace is text, a line per event, times in nanoseconds of CLOCK_MONOTONIC:

    run <run> <size>
    s <number> <time> <kind> <writer> <offset> <length>    taken before the request is handed to libnbd
    a <number> <time> <errno>                              taken after libnbd has reported the answer; errno 0 is success

An operation without an `a` was never answered. Operations that overlap are never in flight together. The load ends after
--ops or --seconds, when standard input ends, or when a connection dies; then what is in flight is waited for.
"""

import argparse
import errno
import os
import random
import select
import struct
import sys
import time
import zlib

import nbd

SECTOR = 512
MAGIC = b"UMBSTAMP"
HEADER = struct.Struct("<8sQQQQ")
FILLER = SECTOR - HEADER.size - 4
ANSWER_LIMIT = 60  # seconds without any answer after which the server counts as dead


def arguments():
    p = argparse.ArgumentParser()
    p.add_argument("--uri", required=True)
    p.add_argument("--trace", required=True)
    p.add_argument("--run", type=int, required=True)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--connections", type=int, default=1)
    p.add_argument("--depth", type=int, default=1, help="operations in flight, over all connections")
    p.add_argument("--ops", type=int, default=0, help="0: no limit")
    p.add_argument("--seconds", type=float, default=0, help="0: no limit")
    p.add_argument("--rate", type=float, default=0, help="operations per second; 0: no limit")
    p.add_argument("--max-sectors", type=int, default=128)
    p.add_argument("--hot", type=int, default=0, help="MiB at the start that get half of the operations")
    p.add_argument("--zero", type=int, default=0, help="per cent of operations")
    p.add_argument("--zero-border", type=int, default=1, help="sectors that zeroes begin and end at a multiple of")
    p.add_argument("--trim", type=int, default=0, help="per cent of operations")
    p.add_argument("--flush", type=int, default=0, help="per cent of operations")
    p.add_argument("--fua", type=int, default=0, help="per cent of changes")
    return p.parse_args()


class Stamper:
    def __init__(self, args):
        self.args = args
        self.random = random.Random(args.seed)
        self.filler = self.random.randbytes(1 << 16)
        self.handles = [nbd.NBD() for _ in range(args.connections)]
        for handle in self.handles:
            handle.connect_uri(args.uri)
        self.size = self.handles[0].get_size() // SECTOR * SECTOR
        if args.connections > 1 and not self.handles[0].can_multi_conn():
            sys.exit("the export does not allow several connections")
        self.trace = open(args.trace, "w", buffering=1 << 16)
        self.trace.write(f"run {args.run} {self.size}\n")
        self.busy = bytearray(self.size // SECTOR)
        self.in_flight = 0
        self.asked = 0
        self.answered = 0
        self.dead = False
        self.stopping = False

    def choose(self):
        """A kind and a range of sectors that no operation in flight touches."""
        roll = self.random.randrange(100)
        args = self.args
        kind = "write"
        for name, share in (("zero", args.zero), ("trim", args.trim), ("flush", args.flush)):
            if roll < share:
                kind = name
                break
            roll -= share
        if kind == "flush":
            return kind, 0, 0
        sectors = len(self.busy)
        if args.hot and self.random.random() < 0.5:
            sectors = min(sectors, args.hot * 2048)
        # Small requests are as frequent as in life; the largest still come.
        count = min(1 << self.random.randrange(args.max_sectors.bit_length()), args.max_sectors)
        if self.random.random() < 0.5:
            count = self.random.randint(1, count)
        border = args.zero_border if kind == "zero" else 1
        while True:
            count = max(border, min(count, sectors) // border * border)
            first = self.random.randrange(sectors - count + 1) // border * border
            if self.busy.find(1, first, first + count) < 0:
                return kind, first, count
            count //= 2

    def payload(self, number, writer, first, count):
        parts = []
        at = self.random.randrange(len(self.filler) - FILLER)
        for lba in range(first, first + count):
            body = HEADER.pack(MAGIC, self.args.run, number, lba, writer) + self.filler[at : at + FILLER]
            parts.append(body)
            parts.append(struct.pack("<I", zlib.crc32(body)))
            at = (at + 397) % (len(self.filler) - FILLER)
        return bytearray(b"".join(parts))

    def submit(self):
        kind, first, count = self.choose()
        number = self.asked + 1
        writer = number % len(self.handles)
        handle = self.handles[writer]
        offset, length = first * SECTOR, count * SECTOR
        fua = nbd.CMD_FLAG_FUA if kind != "flush" and self.random.randrange(100) < self.args.fua else 0
        buffer = nbd.Buffer.from_bytearray(self.payload(number, writer, first, count)) if kind == "write" else None

        def answer(error):
            now = time.monotonic_ns()
            code = error.value if hasattr(error, "value") else error
            if code in (errno.ENOTCONN, errno.ESHUTDOWN) or handle.aio_is_dead() or handle.aio_is_closed():
                # libnbd retires what was in flight when a connection dies: that is no answer of the server.
                self.dead = True
            else:
                self.trace.write(f"a {number} {now} {code}\n")
                self.answered += 1
            self.busy[first : first + count] = bytes(count)
            self.in_flight -= 1
            return 1

        self.busy[first : first + count] = b"\1" * count
        self.trace.write(f"s {number} {time.monotonic_ns()} {kind} {writer} {offset} {length}\n")
        self.asked = number
        self.in_flight += 1
        try:
            if kind == "write":
                handle.aio_pwrite(buffer, offset, answer, fua)
            elif kind == "zero":
                handle.aio_zero(length, offset, answer, fua)
            elif kind == "trim":
                handle.aio_trim(length, offset, answer, fua)
            else:
                handle.aio_flush(answer)
        except nbd.Error:
            # Whether it was sent is not known: it stays in the trace without an answer.
            self.dead = True

    def wait(self, seconds):
        """Lets the connections move for at most this time; ends the load when standard input ends."""
        poll = select.poll()
        by_fd = {}
        for handle in self.handles:
            direction = handle.aio_get_direction()
            events = 0
            if direction & nbd.AIO_DIRECTION_READ:
                events |= select.POLLIN
            if direction & nbd.AIO_DIRECTION_WRITE:
                events |= select.POLLOUT
            if events:
                by_fd[handle.aio_get_fd()] = handle
                poll.register(handle.aio_get_fd(), events)
        if not self.stopping:
            poll.register(0, select.POLLIN)
        for fd, events in poll.poll(seconds * 1000):
            if fd == 0:
                if not os.read(0, 4096):
                    self.stopping = True
                continue
            handle = by_fd[fd]
            try:
                if events & (select.POLLIN | select.POLLHUP | select.POLLERR):
                    handle.aio_notify_read()
                elif events & select.POLLOUT:
                    handle.aio_notify_write()
            except nbd.Error:
                self.dead = True

    def run(self):
        args = self.args
        print("started", flush=True)
        start = time.monotonic()
        end = start + args.seconds if args.seconds else None
        next_flush = last_answer = start
        answered = 0
        while not self.dead:
            now = time.monotonic()
            if self.answered != answered or self.in_flight == 0:
                answered, last_answer = self.answered, now
            if now - last_answer > ANSWER_LIMIT:
                print("no answer from the server", file=sys.stderr)
                break
            if now >= next_flush:
                self.trace.flush()
                next_flush = now + 0.5
            if (end and now >= end) or (args.ops and self.asked >= args.ops):
                self.stopping = True
            if self.stopping and self.in_flight == 0:
                break
            due = not args.rate or self.asked < (now - start) * args.rate
            if not self.stopping and due and self.in_flight < args.depth:
                self.submit()
                if self.in_flight < args.depth and not args.rate:
                    continue
            self.wait(0.2 if not args.rate or self.stopping else max(0.0, min(0.2, (self.asked + 1) / args.rate + start - now)))
        self.trace.close()
        state = "disconnected" if self.dead else "done"
        print(f"{state} asked={self.asked} answered={self.answered}", flush=True)
        if not self.dead:
            for handle in self.handles:
                handle.shutdown()
        return 3 if self.dead else 0


if __name__ == "__main__":
    sys.exit(Stamper(arguments()).run())
