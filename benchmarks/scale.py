"""Many workers on paper: what so many open streams take of workers and of Redis, and what breaks first.

    python benchmarks/scale.py [--streams 1000000] [--pace 20] [--speaking 0.3] [--elsewhere 0.05] ...

Prints one table for a thousand to ``--streams`` open streams. What a single step costs was measured
(RESULTS.md, docs/guides/many-workers.md, and below by name). What depends on chance is simulated: which
events of a stream fall into the same 20 ms, and on which worker a reader lands.
"""

import argparse
import math
import random
from operator import itemgetter

from measure import Row, markdown

# Of a worker.
SILENT_KB = 19.2  # an open stream
EVENT_US, REQUEST_US = 50.0, 650.0
EVENT_BYTES = 130  # an event with its text
BUSY = 0.7  # how much of a core is used on purpose
# Of Redis: one shard is one core.
COMMANDS = 300_000  # a second, pipelined; an XADD in a long pipeline took 1.7 µs of Redis 7.0
ENTRY_BYTES = 90  # an event in a stream, and its share of an entry
STREAM_BYTES = 4400  # a stream with its first entry and its expiry (measured)
KEY_US = 0.8  # for one key of a blocking read (measured with 10 to 1,000)
NETWORK_BYTES = 1.0e9  # a second that a shard's network takes
# Of Millstream.
FLUSH_SECONDS, WINDOW_SECONDS, ANNOUNCE_SECONDS, PER_SIGNAL = 0.02, 300.0, 4.0, 256
SIGNAL_US = 6.0  # for a worker to read one


def simulated_flushes(pace: float, seconds: float = 60.0) -> float:
    """XADDs a second of a stream whose events come at ``pace`` by chance and are gathered for 20 ms."""
    chance = random.Random(1)  # noqa: S311  # no secret
    now, flushes, until = 0.0, 0, 0.0
    while now < seconds:
        now += chance.expovariate(pace)
        if now > until:
            flushes += 1
            until = now + FLUSH_SECONDS
    return flushes / seconds


def simulated_followed(readers: int, workers: int) -> int:
    """The most streams that one worker follows, where readers come to workers by chance."""
    chance = random.Random(2)  # noqa: S311  # no secret
    followed = [0] * workers
    for _ in range(readers):
        followed[chance.randrange(workers)] += 1
    return max(followed)


def sums(streams: int, args: argparse.Namespace) -> Row:
    """What so many open streams take."""
    events = streams * args.speaking * args.pace
    starts = streams / args.seconds
    cores = (events * EVENT_US + starts * REQUEST_US) / 1e6
    workers = max(1, math.ceil(cores / BUSY))
    readers = round(streams * args.elsewhere) if workers > 1 else 0
    gathered = streams * args.speaking * simulated_flushes(args.pace)
    adds = gathered * (1 - args.elsewhere) + events * args.elsewhere if workers > 1 else 0.0
    followed = simulated_followed(readers, workers)
    # Blocking reads a second of a worker, which pauses for 20 µs a key.
    wakes = min(1 / (0.001 + 20e-6 * followed), events * args.elsewhere / workers)
    scanned = followed * wakes * workers * KEY_US / 1e6
    said = 2 * readers / args.seconds + readers / PER_SIGNAL / ANNOUNCE_SECONDS
    kept = streams + starts * WINDOW_SECONDS
    memory = kept * (STREAM_BYTES + args.events * ENTRY_BYTES)
    commands = adds + 4 * starts + wakes * workers
    shards = {
        "processor": commands / COMMANDS + scanned,
        "network": events * EVENT_BYTES * (1 + args.elsewhere) / NETWORK_BYTES,
        "memory at 32 GB": memory / 32e9,
        "signals, which are one key": said * (1 + workers) / COMMANDS,
    }
    first, most = max(shards.items(), key=lambda item: item[1])
    return {
        "streams": f"{streams:,}",
        "events a second": f"{events:,.0f}",
        "workers": workers,
        "GB in each": round(streams * (SILENT_KB * 1000 + args.events * EVENT_BYTES) / workers / 1e9, 2),
        "Redis commands a second": f"{commands:,.0f}",
        "Redis cores for them, for blocking reads": f"{commands / COMMANDS:.2f}, {scanned:.2f}",
        "GB in Redis": round(memory / 1e9, 1),
        "most followed by a worker": followed,
        "signals: a second, and % of each worker": f"{said:,.0f}, {said * SIGNAL_US / 1e4:.1f}",
        "shards": max(1, math.ceil(most)),
        "fullest": f"{first} ({most:.0%} of one)",
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=1_000_000)
    parser.add_argument("--pace", type=float, default=20, help="events a second of a stream that speaks")
    parser.add_argument("--speaking", type=float, default=0.3, help="share of open streams that do")
    parser.add_argument("--elsewhere", type=float, default=0.05, help="share read on another worker")
    parser.add_argument("--seconds", type=float, default=60, help="that a stream is open")
    parser.add_argument("--events", type=float, default=360, help="of a whole stream")
    args = parser.parse_args()
    levels = [level for level in (1_000, 10_000, 100_000) if level < args.streams]
    rows = [sums(level, args) for level in (*levels, args.streams)]
    print(markdown(rows, {name: itemgetter(name) for name in rows[0]}))


if __name__ == "__main__":
    main()
