#!/usr/bin/python3
"""A host with an iSCSI initiator of the plainest kind: one connection, one command at a time, no authentication.

    initiator.py --portal HOST:PORT --target NAME --lun N --name NAME --isid HEX send CDB[:OUT[:IN]] ...
    initiator.py … count LBA TIMES
    initiator.py … reset

`send` sends commands one after the other and prints a line of JSON for the answer to each: status, sense, data. CDB and
OUT (what is written) are hexadecimal, IN is how many bytes are read.

`count` adds one to the number in a block, so many times, as hosts do that share a disk: it reads the block, and has it
compared with what was read and replaced by the next number (COMPARE AND WRITE); where another was faster, again. It
prints how often that was.

`reset` resets the logical unit, and with it what other hosts have under way there.

Sections are RFC 7143's.
"""

import argparse
import json
import socket
import struct

BLOCK = 512
BURST_MAX = 65536  # of what is sent without being asked: FirstBurstLength by default
FINAL = 0x80
NOP_OUT, COMMAND, TASK_MANAGEMENT, LOGIN, DATA_OUT, LOGOUT = 0x00, 0x01, 0x02, 0x03, 0x05, 0x06
NOP_IN, RESPONSE, TASK_MANAGED, LOGIN_RESPONSE = 0x20, 0x21, 0x22, 0x23
DATA_IN, LOGOUT_RESPONSE, R2T = 0x25, 0x26, 0x31
LUN_RESET = 5
GOOD, CHECK_CONDITION = 0x00, 0x02
MISCOMPARE = 0x0E
UNIT_ATTENTION = 0x06


class Initiator:
    def __init__(self, args):
        host, port = args.portal.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.lun = struct.pack(">H6x", args.lun)
        self.task = 0
        self.number = 1
        self.expected = 0
        self.login(args)

    def receive(self, length):
        data = bytearray()
        while len(data) < length:
            part = self.socket.recv(length - len(data))
            if not part:
                raise SystemExit("the target closed the connection")
            data += part
        return bytes(data)

    def send(self, head, data=b""):
        head[5:8] = len(data).to_bytes(3, "big")
        self.socket.sendall(bytes(head) + data + bytes(-len(data) % 4))

    def next(self):
        """The next PDU that is no ping of the target's."""
        while True:
            head = self.receive(48)
            length = int.from_bytes(head[5:8], "big")
            data = self.receive(length + head[4] * 4 + -length % 4)[head[4] * 4 :][:length]
            opcode = head[0] & 0x3F
            if opcode != NOP_IN:
                return opcode, head, data
            if head[20:24] != b"\xff\xff\xff\xff":
                answer = bytearray(48)
                answer[0:2] = bytes([NOP_OUT | 0x40, FINAL])
                answer[8:16] = head[8:16]
                answer[16:20] = b"\xff\xff\xff\xff"
                answer[20:24] = head[20:24]
                answer[24:32] = struct.pack(">II", self.number, self.expected)
                self.send(answer, data)

    def login(self, args):
        """11.12: straight into the operational stage, and out of it."""
        keys = [f"InitiatorName={args.name}", f"TargetName={args.target}", "SessionType=Normal", "HeaderDigest=None"]
        keys += ["DataDigest=None", "InitialR2T=Yes", "ImmediateData=Yes", "MaxRecvDataSegmentLength=262144"]
        text = "".join(key + "\0" for key in keys).encode()
        head = bytearray(48)
        head[0:2] = bytes([LOGIN | 0x40, FINAL | 1 << 2 | 3])
        head[8:14] = bytes.fromhex(args.isid)
        head[24:28] = struct.pack(">I", self.number)
        self.send(head, text)
        opcode, head, data = self.next()
        status = int.from_bytes(head[36:38], "big")
        if opcode != LOGIN_RESPONSE or status or head[1] & 0x83 != FINAL | 3:
            raise SystemExit(f"the login is answered with {opcode:#x}, status {status:#06x}, {data}")
        self.expected = int.from_bytes(head[24:28], "big") + 1

    def reset(self):
        """11.5"""
        head = bytearray(48)
        head[0:2] = bytes([TASK_MANAGEMENT | 0x40, FINAL | LUN_RESET])
        head[8:16] = self.lun
        head[16:32] = struct.pack(">IIII", self.task + 1, 0xFFFFFFFF, self.number, self.expected)
        self.send(head)
        opcode, head, _ = self.next()
        if opcode != TASK_MANAGED or head[2]:
            raise SystemExit(f"the reset is answered with {opcode:#x}, response {head[2]:#x}")
        self.expected += 1

    def logout(self):
        head = bytearray(48)
        head[0:2] = bytes([LOGOUT | 0x40, FINAL])
        head[24:32] = struct.pack(">II", self.number, self.expected)
        self.send(head)
        while self.next()[0] != LOGOUT_RESPONSE:
            pass

    def command(self, cdb, out=b"", wanted=0):
        """Status, sense data and what was read."""
        assert len(out) <= BURST_MAX and not (out and wanted)
        self.task += 1
        head = bytearray(48)
        flags = (0x40 if wanted else 0) | (0x20 if out else 0)
        head[0:2] = bytes([COMMAND, FINAL | flags | 1])
        head[8:16] = self.lun
        head[16:32] = struct.pack(">IIII", self.task, wanted or len(out), self.number, self.expected)
        head[32 : 32 + len(cdb)] = cdb
        # All of it comes when it is asked for: what is sent with the command must fit into one PDU.
        self.send(head)
        self.number += 1
        data = bytearray()
        while True:
            opcode, head, segment = self.next()
            if opcode == R2T:
                self.answer(head, out)
            elif opcode == DATA_IN:
                data += segment
                if head[1] & 1:
                    self.expected += 1
                    return head[3], b"", bytes(data)
            elif opcode == RESPONSE:
                self.expected += 1
                if head[2]:
                    raise SystemExit(f"the target failed: response {head[2]:#x}")
                return head[3], segment[2:], bytes(data)
            else:
                raise SystemExit(f"a PDU that was not expected: {opcode:#x}")

    def answer(self, request, out):
        """11.8, with Data-Out of 8 KiB: what a target takes that has declared nothing."""
        tag = request[20:24]
        offset, length = struct.unpack(">II", request[40:48])
        for number, at in enumerate(range(offset, offset + length, 8192)):
            part = out[at : min(at + 8192, offset + length)]
            head = bytearray(48)
            head[0:2] = bytes([DATA_OUT, FINAL if at + len(part) == offset + length else 0])
            head[8:16] = self.lun
            head[16:24] = struct.pack(">I", self.task) + tag
            head[28:32] = struct.pack(">I", self.expected)
            head[36:44] = struct.pack(">II", number, at)
            self.send(head, part)


def sense_key(sense):
    return sense[2] & 0x0F if len(sense) > 2 and sense[0] & 0x7F == 0x70 else None


def send(initiator, commands):
    for text in commands:
        cdb, out, wanted = (text.split(":") + ["", ""])[:3]
        status, sense, data = initiator.command(bytes.fromhex(cdb), bytes.fromhex(out), int(wanted or 0))
        print(json.dumps({"status": status, "sense": sense.hex(), "data": data.hex()}), flush=True)


def count(initiator, lba, times):
    read = struct.pack(">BBQIBB", 0x88, 0, lba, 1, 0, 0)
    replace = struct.pack(">BBQ3xBBB", 0x89, 0, lba, 1, 0, 0)
    missed = done = 0
    while done < times:
        status, sense, block = initiator.command(read, wanted=BLOCK)
        if status == GOOD:
            number = int.from_bytes(block[:8], "little")
            status, sense, _ = initiator.command(replace, block + (number + 1).to_bytes(8, "little") + block[8:])
        if status == GOOD:
            done += 1
        elif status == CHECK_CONDITION and sense_key(sense) == MISCOMPARE:
            missed += 1
        elif not (status == CHECK_CONDITION and sense_key(sense) == UNIT_ATTENTION):
            raise SystemExit(f"status {status:#x}, sense {sense.hex()}")
    print(json.dumps({"missed": missed}), flush=True)


def main():
    parser = argparse.ArgumentParser()
    for name in ["--portal", "--target", "--name", "--isid"]:
        parser.add_argument(name, required=True)
    parser.add_argument("--lun", type=int, default=0)
    kinds = parser.add_subparsers(dest="kind", required=True)
    kinds.add_parser("send").add_argument("commands", nargs="+")
    kinds.add_parser("reset")
    counting = kinds.add_parser("count")
    counting.add_argument("lba", type=int)
    counting.add_argument("times", type=int)
    args = parser.parse_args()
    initiator = Initiator(args)
    if args.kind == "send":
        send(initiator, args.commands)
    elif args.kind == "reset":
        initiator.reset()
    else:
        count(initiator, args.lba, args.times)
    initiator.logout()


if __name__ == "__main__":
    main()
