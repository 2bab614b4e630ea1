"""One run: a seed -> streams, clients and faults against real processes, and what the checker says of it.

    python -m nemesis.run --set-up fleet --streams 500 --faults 15 --seconds 60 --seed 7

Exit code 1 where an invariant was broken. The same seed makes the same plans again.
"""

import argparse
import asyncio
import pickle
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import aiohttp
import psutil

from nemesis import checker, plans
from nemesis.clients import Crowd
from nemesis.faults import KINDS, Nemesis, available
from nemesis.plans import Plan, SetUp
from nemesis.provider import Provider, provider
from nemesis.records import Evidence, Probe, Sample, Violation
from nemesis.servers import Cluster, Worker, cluster, key_of

WARM_UP = 12  # streams of each worker before anything is measured
SETTLE_SECONDS = 45.0
BACK_SECONDS = 25.0  # for everything to go back to where it was
_RECEIPTS = 2000  # that are asked for, at the most


@dataclass
class Options:
    set_up: SetUp = "single"
    streams: int = 200
    faults: int = 8
    seed: int = 1
    seconds: float = 40.0
    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    mutant: str = ""
    keep: Path | None = None
    quiet: bool = False

    def command(self) -> str:
        """What makes the same run again."""
        parts = [
            f"python -m nemesis.run --set-up {self.set_up} --streams {self.streams} --faults {self.faults}",
            f"--seconds {self.seconds:g} --seed {self.seed}",
        ]
        parts += [f"--only {','.join(self.only)}"] if self.only else []
        parts += [f"--without {','.join(self.without)}"] if self.without else []
        parts += [f"--mutant {self.mutant}"] if self.mutant else []
        return " ".join(parts)


@dataclass
class Outcome:
    evidence: Evidence
    violations: list[Violation]
    notes: list[str] = field(default_factory=list)


class Run:
    def __init__(
        self, options: Options, found: Cluster, oracle: Provider, session: aiohttp.ClientSession
    ) -> None:
        self.options, self.cluster, self.provider, self.session = options, found, oracle, session
        self.evidence = Evidence(seed=options.seed, set_up=options.set_up)
        self.notes: list[str] = []
        self.nemesis = Nemesis(found)
        self._tasks: list[asyncio.Task[None]] = []

    def say(self, text: str) -> None:
        if not self.options.quiet:
            print(text, flush=True)

    # -- from the start to the end ----------------------------------------------------------

    async def all(self) -> Outcome:
        evidence, options, found = self.evidence, self.options, self.cluster
        key = key_of(found.workers[0])
        mine = await self._make_key(key, "mine")
        other = await self._make_key(key, "other")
        self.crowd = Crowd(options.seed, found.workers, mine, other, self.session)
        evidence.secrets = {
            "a key": mine.partition("live_")[2],
            "another key": other.partition("live_")[2],
            "the first key": key.partition("live_")[2],
            "the provider's key": plans.PROVIDER_KEY,
            "the provider's address": f"127.0.0.1:{self.provider.port}",
            "a provider's words": plans.CANARY_PROVIDER,
            "a prompt": plans.CANARY_PROMPT,
            "an answer": plans.CANARY_ANSWER,
        }
        plan = self._plan()
        await self._warm_up()
        evidence.before = [_sample(worker) for worker in found.workers]
        redis_before = self._redis_connections()
        evidence.began_at = time.monotonic()
        watching = [self._watch_rows(), self._watch_resources(), self._watch_readiness(), self._watch_loop()]
        self._tasks = [asyncio.create_task(watch) for watch in watching]
        try:
            await self._traffic(plan)
            await self._calm()
            await self._settled()
            await self._receipts(key)
            await self._back()
            evidence.redis_connections = (redis_before, self._redis_connections())
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        for worker in found.workers:
            worker.stopping = True
        await asyncio.gather(*(worker.terminate() for worker in found.workers))
        await asyncio.sleep(0.2)  # those who look after them note how they ended
        self._gather()
        return Outcome(evidence, checker.check(evidence), self.notes)

    def where_it_is(self) -> str:
        """What is known of a run that broke off: how it is made again, its faults, its servers."""
        began = self.evidence.began_at
        lines = [f"again: {self.options.command()}"]
        lines += [
            f"{f.began_at - began:6.1f} to {f.ended_at - began:6.1f} s  {f.name} {min(f.touches)} {f.note}"
            for f in self.nemesis.faults
        ]
        lines += [f"in the way of others: {name}" for name in self.nemesis.failed]
        for worker in self.cluster.workers:
            lines.append(f"{'living' if worker.alive else 'ended'} {worker.number}: {worker.readiness()}")
            for printed in list(worker.printed("err").values())[-2:]:
                lines += [f"    {line[:400]}" for line in printed.splitlines()[-8:]]
        return "\n".join(lines)

    def _plan(self) -> Plan:
        options, workers = self.options, len(self.cluster.workers)
        names, absent = available(self.cluster)
        for name, why in absent.items():
            self.notes.append(f"left out: {name}, since {why}")
        names = [n for n in names if (not options.only or n in options.only) and n not in options.without]
        weights = [KINDS[name].weight for name in names]
        return Plan(
            options.seed,
            options.set_up,
            options.seconds,
            plans.client_plans(options.seed, options.streams, options.seconds, workers),
            plans.fault_plans(options.seed, options.faults, options.seconds, workers, names, weights),
        )

    async def _make_key(self, admin: str, name: str) -> str:
        headers = {"Authorization": f"Bearer {admin}"}
        url = f"{self.cluster.workers[0].url}/v1/keys"
        async with self.session.post(url, json={"name": name, "scopes": ["chat"]}, headers=headers) as answer:
            made = await answer.json()
            assert answer.status in (200, 201), made
            return str(made["key"] if "key" in made else made["secret"])

    async def _warm_up(self) -> None:
        """What is loaded once is loaded before it is measured."""
        chance = random.Random(self.options.seed)
        for worker in self.cluster.workers:
            clients = [
                self.crowd.client(
                    plans.ClientPlan(-(worker.number * WARM_UP + i) - 1, 0, "reader", "cancel", worker.number)
                )
                for i in range(WARM_UP)
            ]
            async with asyncio.timeout(60):
                await asyncio.gather(*clients)
            for _ in range(WARM_UP):
                await self.crowd.probe("warm", "GET", f"/v1/streams/str_{chance.random()}", worker)
        self.crowd.probes.clear()

    async def _traffic(self, plan: Plan) -> None:
        began = self.evidence.began_at
        faults = [asyncio.create_task(self._at(began + f.at, self.nemesis.make(f))) for f in plan.faults]
        clients = [asyncio.create_task(self._at(began + c.at, self.crowd.client(c))) for c in plan.clients]
        everything = [*faults, *clients]
        limit = began + plan.seconds + 240
        last = 0.0
        while (pending := [task for task in everything if not task.done()]) and time.monotonic() < limit:
            await asyncio.wait(pending, timeout=5, return_when=asyncio.ALL_COMPLETED)
            if time.monotonic() - last > 10:
                last = time.monotonic()
                done = sum(task.done() for task in clients)
                self.say(
                    f"  {last - began:5.0f} s  {done} of {len(clients)} clients done, "
                    f"{len(self.nemesis.faults)} of {len(faults)} faults, {len(self.provider.asked)} calls"
                )
        for task in pending:
            task.cancel()
        for result in await asyncio.gather(*everything, return_exceptions=True):
            if isinstance(result, Exception):
                raise result
        self.evidence.calm_at = max((fault.ended_at for fault in self.nemesis.faults), default=began)
        if pending:
            self.notes.append(f"{len(pending)} tasks did not end in time")

    async def _at(self, moment: float, work: Any) -> None:
        try:
            await asyncio.sleep(max(0.0, moment - time.monotonic()))
        except asyncio.CancelledError:
            work.close()
            raise
        await work

    async def _calm(self) -> None:
        for worker in self.cluster.workers:
            await worker.ready()

    async def _settled(self) -> None:
        """Waits until no row runs, for as long as it may take."""
        limit = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < limit and len(await asyncio.to_thread(self.cluster.running)):
            await asyncio.sleep(0.2)

    async def _receipts(self, admin: str) -> None:
        rows = await asyncio.to_thread(self.cluster.rows)
        chosen = random.Random(self.options.seed).sample(rows, min(len(rows), _RECEIPTS))
        headers = {"Authorization": f"Bearer {admin}"}
        together = asyncio.Semaphore(8)

        async def one(number: int, stream_id: str) -> None:
            worker = self.cluster.workers[number % len(self.cluster.workers)]
            async with together:
                with suppress(aiohttp.ClientError, TimeoutError):
                    url = f"{worker.url}/v1/streams/{stream_id}"
                    async with self.session.get(url, headers=headers) as answer:
                        told = await answer.json()
                        counts = {**told["usage"], "usage_source": told["usage"]["source"]}
                        self.evidence.receipts[stream_id] = told | counts

        await asyncio.gather(*(one(number, row["id"]) for number, row in enumerate(chosen)))

    async def _back(self) -> None:
        """Waits until what was taken is given back, for as long as it may take."""
        limit = time.monotonic() + BACK_SECONDS
        while True:
            after = [_sample(worker) for worker in self.cluster.workers]
            self.evidence.after, self.evidence.left_open = after, self.provider.open
            if not checker.resources_held(self.evidence):
                return
            if time.monotonic() > limit:
                for worker, sample in zip(self.cluster.workers, after, strict=True):
                    sample.kinds = _descriptors(worker)
                return
            await asyncio.sleep(0.5)

    def _gather(self) -> None:
        evidence, crowd, found = self.evidence, self.crowd, self.cluster
        evidence.asked = self.provider.asked
        evidence.clients = crowd.records
        evidence.probes += crowd.probes
        evidence.bodies = crowd.bodies
        evidence.rows, evidence.changes = found.rows(), found.changes()
        evidence.faults = self.nemesis.faults
        evidence.exits = found.exits
        for worker in found.workers:
            evidence.logs |= worker.printed("err")
        if found.redis is not None:
            evidence.redis_keys = found.redis.lifetimes()
        if self.nemesis.failed:
            self.notes.append(f"faults that others were in the way of: {self.nemesis.failed}")

    def _redis_connections(self) -> int:
        redis = self.cluster.redis
        if redis is None:
            return 0
        return len(redis.command("CLIENT", "LIST", "TYPE", "normal").splitlines())

    # -- watching ---------------------------------------------------------------------------

    async def _watch_rows(self) -> None:
        seen: set[str] = set()
        evidence = self.evidence
        while True:
            with suppress(Exception):  # the database is one of those that are mistreated
                asked_at = time.monotonic()
                running = await asyncio.to_thread(self.cluster.running)
                now = time.monotonic()
                evidence.seen_running_at |= dict.fromkeys(running, asked_at)
                for stream_id in seen - running:
                    evidence.seen_settled_at.setdefault(stream_id, now)
                seen |= running
            await asyncio.sleep(0.5)

    async def _watch_resources(self) -> None:
        while True:
            for worker in self.cluster.workers:
                with suppress(psutil.Error, AssertionError):
                    self.evidence.samples.append(_sample(worker))
            await asyncio.sleep(1)

    async def _watch_readiness(self) -> None:
        """Asks every worker whether it is ready, each on its own."""

        async def one(worker: Worker) -> None:
            while True:
                probe = Probe("ready", worker.number, time.monotonic(), None)
                with suppress(aiohttp.ClientError, OSError, TimeoutError):
                    async with asyncio.timeout(6), self.session.get(f"{worker.url}/readyz") as answer:
                        probe.status, probe.body = answer.status, await answer.text()
                probe.ended_at = time.monotonic()
                self.evidence.probes.append(probe)
                await asyncio.sleep(1)

        async with asyncio.TaskGroup() as tasks:
            for worker in self.cluster.workers:
                tasks.create_task(one(worker))

    async def _watch_loop(self) -> None:
        """How late this process itself is: what it measures is no more exact than that."""
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.1)
            now = time.monotonic()
            self.evidence.harness_lag.append((now, now - began - 0.1))


def _sample(worker: Worker) -> Sample:
    process = psutil.Process(worker.pid)
    return Sample(
        worker.number,
        worker.pid,
        time.monotonic(),
        process.memory_info().rss,
        process.num_fds(),
        process.num_threads(),
    )


def _descriptors(worker: Worker) -> str:
    """What its descriptors are of."""
    process = psutil.Process(worker.pid)
    found = Counter(f"tcp {c.status} {c.laddr[1:]}-{c.raddr[1:]}" for c in process.net_connections("tcp"))
    found.update(f"unix {c.raddr or c.laddr}" for c in process.net_connections("unix"))
    found.update(file.path for file in process.open_files())
    return ", ".join(f"{count} x {what}" for what, count in found.most_common(20))


async def run(options: Options) -> Outcome:
    """One run. What it leaves behind is kept in ``options.keep``."""
    if not options.quiet:
        print(f"nemesis: seed {options.seed}: {options.command()}", flush=True)
    folder = options.keep or Path(tempfile.mkdtemp(prefix="nemesis-"))
    try:
        async with (
            provider(options.seed) as oracle,
            cluster(options.set_up, folder, oracle.base_url, mutant=options.mutant) as found,
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, force_close=True),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
            ) as session,
        ):
            going = Run(options, found, oracle, session)
            try:
                return await going.all()
            except Exception as error:
                error.add_note(going.where_it_is())
                raise
    finally:
        if options.keep is None:
            shutil.rmtree(folder, ignore_errors=True)


# -- what is said of it ----------------------------------------------------------------------------


def summary(outcome: Outcome, options: Options) -> str:
    evidence = outcome.evidence
    lines = [f"{options.set_up}, seed {options.seed}"]

    def row(name: str, counts: Mapping[Any, int]) -> None:
        listed = ", ".join(f"{key} {value}" for key, value in sorted(counts.items(), key=str))
        lines.append(f"  {name:<10} {sum(counts.values()):>6}  {listed}")

    row("rows", Counter(str(r["error_code"] or r["status"]) for r in evidence.rows))
    row("sources", Counter(str(r["usage_source"]) for r in evidence.rows))
    row("calls", Counter(a.plan.ending for a in evidence.asked))
    row("clients", Counter(c.outcome for c in evidence.clients))
    row("faults", Counter(f.name for f in evidence.faults))
    row("exits", Counter(f"{e.code}{'' if e.expected else ' by itself ' + e.what}" for e in evidence.exits))
    lines += [f"  {line}" for line in checker.figures(evidence)]
    lines += [f"  note: {note}" for note in outcome.notes]
    lines += [f"  log: {count} x {line}" for line, count in checker.log_lines(evidence).most_common(12)]
    by = Counter(violation.invariant for violation in outcome.violations)
    for name in checker.INVARIANTS:
        said = f"{by[name]} violations" if by[name] else checker.UNCHECKED.get(name, "holds")
        lines.append(f"  {name:<4} {said}")
    shown: Counter[str] = Counter()
    for violation in outcome.violations:
        shown[violation.invariant] += 1
        if shown[violation.invariant] <= 8:
            lines.append(f"  {violation}")
    if outcome.violations:
        lines.append(f"  again: {options.command()}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m nemesis.run", description=__doc__)
    parser.add_argument("--set-up", choices=[*get_args(SetUp), "both"], default="both")
    parser.add_argument("--streams", type=int, default=400, help="of each set-up")
    parser.add_argument("--faults", type=int, default=12, help="of each set-up")
    parser.add_argument("--seconds", type=float, default=0, help="in which they start; 0: as the counts need")
    parser.add_argument("--seed", type=int, default=0, help="0: a random one")
    parser.add_argument("--only", default="", help="faults, with commas between them")
    parser.add_argument("--without", default="", help="faults, with commas between them")
    parser.add_argument("--mutant", default="", help="a fault of the product: see nemesis.mutants")
    parser.add_argument("--keep", type=Path, default=None, help="a folder for what the run leaves behind")
    given = parser.parse_args(arguments)
    failed = False
    set_ups: Sequence[SetUp] = get_args(SetUp) if given.set_up == "both" else (given.set_up,)
    for set_up in set_ups:
        options = Options(
            set_up=set_up,
            streams=given.streams,
            faults=given.faults,
            seed=given.seed or random.randrange(1, 10**9),
            seconds=given.seconds or max(15.0, given.streams / 12, given.faults * 6.0),
            only=tuple(filter(None, given.only.split(","))),
            without=tuple(filter(None, given.without.split(","))),
            mutant=given.mutant,
            keep=None if given.keep is None else given.keep / set_up,
        )
        outcome = asyncio.run(run(options))
        print(summary(outcome, options), flush=True)
        if given.keep is not None:
            with (given.keep / set_up / "evidence.pickle").open("wb") as file:
                pickle.dump(outcome, file)
        failed = failed or bool(outcome.violations)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
