#!/usr/bin/python3
"""Works on a filesystem as its users do, keeps a ledger of what is durable, and checks a copy against the ledger.

    filesystem.py work FOLDER --seed N     until standard input ends; prints the ledger
    filesystem.py check FOLDER BEFORE      reads a ledger on standard input; BEFORE: nanoseconds since 1970

Four threads: transactions in a database with a write-ahead log, transactions in one with a rollback journal, files that
are written, synced and kept, and a file at whose bytes all calls work at random (as fsx does) amid names that come and
go. The ledger is a line for each thing that will be there from now on, with the time when the call that made it durable
had returned; nothing in it is ever taken back:

    row <database> <number> <time>         every row has the check sum of its content
    file <name> <crc> <time>

`check` fails unless all that the ledger has before BEFORE is there and right, no row or file is torn, rows have no gap,
and the databases pass their own check.
"""

import argparse
import mmap
import os
import random
import sqlite3
import sys
import threading
import time
import zlib

JOURNALS = {"wal.db": "wal", "rollback.db": "delete"}
stopping = threading.Event()
failed = threading.Event()


def say(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def content(number, length):
    return random.Random(number).randbytes(length)


def transactions(folder, name, seed):
    """Each inserts a row, changes a counter, and every tenth drops and makes a table full of filler."""
    chance = random.Random(seed)
    db = sqlite3.connect(os.path.join(folder, name), isolation_level=None)
    db.execute(f"pragma journal_mode={JOURNALS[name]}")
    # Full would not sync the folder after the journal's name is gone, so that a power cut could take a commit back.
    db.execute("pragma synchronous=extra")
    db.execute("pragma wal_autocheckpoint=50")
    db.execute("create table rows (number integer primary key, body blob, crc integer)")
    db.execute("create index by_crc on rows (crc, number)")
    db.execute("create table counter (rows integer)")
    db.execute("insert into counter values (0)")
    number = 0
    while not stopping.is_set():
        number += 1
        body = content(number, chance.randrange(20, 6000))
        db.execute("begin immediate")
        db.execute("insert into rows values (?, ?, ?)", (number, body, zlib.crc32(body)))
        db.execute("update counter set rows = ?", (number,))
        if number % 10 == 0:
            db.execute("drop table if exists filler")
            db.execute("create table filler as select number, body from rows order by crc limit 20")
        db.execute("commit")
        say("row", name, number, time.time_ns())
        time.sleep(0.005)
    db.close()


def kept_files(folder, seed):
    chance = random.Random(seed)
    place = os.path.join(folder, "kept")
    os.mkdir(place)
    number = 0
    while not stopping.is_set():
        number += 1
        name = f"{number:06}"
        body = content(number, chance.randrange(1, 60000))
        with open(os.path.join(place, "new"), "wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        os.rename(os.path.join(place, "new"), os.path.join(place, name))
        handle = os.open(place, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
        say("file", name, zlib.crc32(body), time.time_ns())
        time.sleep(0.01)


def random_calls(folder, seed):
    """A model in memory says what the file must hold; the names around it only have to keep the filesystem busy."""
    chance = random.Random(seed)
    place = os.path.join(folder, "busy")
    os.mkdir(place)
    path = os.path.join(place, "file")
    handle = os.open(path, os.O_RDWR | os.O_CREAT)
    model = bytearray()
    most = 1 << 20
    step = 0
    while not stopping.is_set():
        step += 1
        call = chance.randrange(12)
        at = chance.randrange(most)
        length = min(chance.randrange(1, 65536), most - at)
        if call < 4:
            body = chance.randbytes(length)
            os.pwrite(handle, body, at)
            model.extend(bytes(max(0, at - len(model))))
            model[at : at + length] = body
        elif call < 6:
            os.ftruncate(handle, at)
            model[at:] = b""
            model.extend(bytes(at - len(model)))
        elif call == 6 and len(model) > 0:
            with mmap.mmap(handle, len(model)) as view:
                at = chance.randrange(len(model))
                body = chance.randbytes(min(5000, len(model) - at))
                view[at : at + len(body)] = body
                model[at : at + len(body)] = body
        elif call == 7:
            os.fsync(handle)
        elif call == 8:
            for name in range(30):
                os.close(os.open(os.path.join(place, f"{step}-{name}"), os.O_CREAT | os.O_WRONLY))
        elif call == 9:
            names = sorted(os.listdir(place))
            for name in chance.sample(names, min(25, len(names))):
                if name == "file":
                    continue
                old = os.path.join(place, name)
                if chance.random() < 0.3:
                    os.rename(old, os.path.join(place, f"renamed-{step}-{name[-8:]}"))
                else:
                    os.unlink(old)
        elif call == 10:
            os.link(path, os.path.join(place, f"link-{step}"))
        read = os.pread(handle, length, at)
        if read != model[at : at + length]:
            raise AssertionError(f"step {step}: {length} bytes at {at} read differently than they were written")
        time.sleep(0.002)
    os.close(handle)


def guarded(work, *arguments):
    try:
        work(*arguments)
    except BaseException as error:  # a thread that dies silently would look like one that has nothing to say
        print(f"{work.__name__}{arguments}: {error!r}", file=sys.stderr, flush=True)
        failed.set()
        stopping.set()


def work(folder, seed):
    jobs = [(transactions, folder, name, seed) for name in JOURNALS] + [(kept_files, folder, seed), (random_calls, folder, seed)]
    threads = [threading.Thread(target=guarded, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    threading.Thread(target=lambda: (sys.stdin.read(), stopping.set()), daemon=True).start()
    for thread in threads:
        thread.join()
    return 1 if failed.is_set() else 0


def check(folder, before):
    ledger = [line.split() for line in sys.stdin]
    rows = {name: 0 for name in JOURNALS}
    files = {}
    for words in ledger:
        if int(words[3]) < before:
            if words[0] == "row":
                rows[words[1]] = int(words[2])
            else:
                files[words[1]] = int(words[2])
    wrong = []
    for name, least in rows.items():
        path = os.path.join(folder, name)
        if least == 0 and not os.path.exists(path):
            continue
        db = sqlite3.connect(path)
        verdict = [row[0] for row in db.execute("pragma integrity_check")]
        if verdict != ["ok"]:
            wrong.append(f"{name}: integrity_check says {verdict[:5]}")
        if least == 0 and not db.execute("select 1 from sqlite_master where name = 'counter'").fetchone():
            continue
        count, highest = db.execute("select count(*), coalesce(max(number), 0) from rows").fetchone()
        counter = db.execute("select rows from counter").fetchone()
        if count != highest or (counter and counter[0] != count):
            wrong.append(f"{name}: {count} rows, the highest is {highest}, its counter says {counter}")
        if highest < least:
            wrong.append(f"{name}: {highest} rows, {least} were committed before")
        torn = [number for number, body, crc in db.execute("select * from rows") if zlib.crc32(body) != crc]
        if torn:
            wrong.append(f"{name}: rows {torn[:5]} are torn")
        db.close()
        say(name, highest, "rows,", least, "needed")
    for name, crc in files.items():
        try:
            with open(os.path.join(folder, "kept", name), "rb") as file:
                if zlib.crc32(file.read()) != crc:
                    wrong.append(f"file {name} has other content")
        except OSError as error:
            wrong.append(f"file {name}: {error}")
    say(len(files), "files")
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


def main():
    p = argparse.ArgumentParser()
    commands = p.add_subparsers(dest="command", required=True)
    c = commands.add_parser("work")
    c.add_argument("folder")
    c.add_argument("--seed", type=int, default=1)
    c = commands.add_parser("check")
    c.add_argument("folder")
    c.add_argument("before", type=int)
    args = p.parse_args()
    return work(args.folder, args.seed) if args.command == "work" else check(args.folder, args.before)


if __name__ == "__main__":
    sys.exit(main())
