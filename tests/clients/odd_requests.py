#!/usr/bin/python3
"""Sends requests that no careful client sends, one after the other on one connection, and prints the answers.

Left out are requests whose answer the protocol leaves to the server (a length of zero).
"""

import sys

import nbd

h = nbd.NBD()
h.add_meta_context("base:allocation")
h.connect_uri(sys.argv[1])
h.set_strict_mode(0)  # lets libnbd send what it would refuse by itself
size = h.get_size()

requests = {
    "read past the end": lambda: h.pread(512, size - 256),
    "read after the end": lambda: h.pread(512, size + 4096),
    "read at the highest offset": lambda: h.pread(512, 2**63 - 1024),
    "write past the end": lambda: h.pwrite(b"x" * 512, size - 256),
    "write after the end": lambda: h.pwrite(b"x" * 512, size + 4096),
    "trim past the end": lambda: h.trim(4096, size - 512),
    "zero past the end": lambda: h.zero(4096, size - 512),
    "cache past the end": lambda: h.cache(4096, size - 512),
    "map past the end": lambda: h.block_status(4096, size - 512, lambda *_: 0),
    "write of one byte": lambda: h.pwrite(b"1", 12345),
    "read of one byte": lambda: bytes(h.pread(1, 12345)),
    "write across a block border": lambda: h.pwrite(b"2" * 131, 65536 - 65),
    "read across a block border": lambda: bytes(h.pread(131, 65536 - 65)),
    "unaligned zeroes": lambda: h.zero(1001, 65500),
    "read after unaligned zeroes": lambda: bytes(h.pread(8, 65496)),
    "write with FUA": lambda: h.pwrite(b"3" * 4096, 1 << 20, nbd.CMD_FLAG_FUA),
    "zero with FUA and without a hole": lambda: h.zero(4096, 2 << 20, nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_NO_HOLE),
    "trim with FUA": lambda: h.trim(4096, 1 << 20, nbd.CMD_FLAG_FUA),
    "read with FUA": lambda: len(h.pread(512, 0, nbd.CMD_FLAG_FUA)),
    "read in one chunk": lambda: bytes(h.pread(16, 1 << 20, nbd.CMD_FLAG_DF)),
    "write with a flag that no one knows": lambda: h.pwrite(b"4" * 512, 0, 1 << 14),
    "read with a flag of other commands": lambda: len(h.pread(512, 0, nbd.CMD_FLAG_NO_HOLE)),
    "cache": lambda: h.cache(4096, 0),
    "flush": lambda: h.flush(),
    "one extent only": lambda: h.block_status(65536, 0, lambda *_: 0, nbd.CMD_FLAG_REQ_ONE),
}

for name, request in requests.items():
    try:
        print(f"{name}: {request()}")
    except nbd.Error as error:
        print(f"{name}: {error.errno}")
# A length of zero may be answered in any way, but it must be answered.
for request in (lambda: h.pread(0, 0), lambda: h.trim(0, 0), lambda: h.zero(0, 0)):
    try:
        request()
    except nbd.Error:
        pass
print("still there:", len(h.pread(512, 0)), h.aio_is_ready())
h.shutdown()
