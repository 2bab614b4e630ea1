"""The checker: what a run has found -> what was broken of I1-I12 (spec/faults.md).

Each invariant has a function from the evidence to its violations. What a fault allows is said where it is allowed,
and for no longer than the fault can have an effect.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from nemesis.plans import PRICE_IN, PRICE_OUT, count_prompt
from nemesis.records import Asked, Client, Evidence, Exit, Fault, Probe, Row, Sample, Violation
from nemesis.servers import REDIS_CONNECTIONS, STREAM_SECONDS, WINDOW_SECONDS

INVARIANTS = tuple(f"I{number}" for number in range(1, 13))
UNCHECKED = {"I7": "not checked: budgets are planned"}

SETTLE_SECONDS = 30.0  # I1
SLACK_SECONDS = 5.0  # of a machine that runs all of this at once
CLOSE_SECONDS = 3.0  # I5: the figure itself is measured by make bench
CHECKPOINT_SECONDS = 3.0  # one, written on such a machine
RACE_SECONDS = 1.5  # between an end that a reader has seen and its row
LEASE_SECONDS = 15.0
ORPHANED_SECONDS = 30.0  # what the death of a worker can still do to its streams
STILL_SECONDS = 3.5  # of this process: with what it is late besides, the 7 s of a silent provider
FIRST_BYTE_SECONDS = 9.0
LAG_SECONDS = 1.0  # I11, p99
DESCRIPTORS, THREADS = 15, 10  # I6: what may stay of each
MEMORY_BASE, MEMORY_SHARE = 64 << 20, 64 << 10  # I8

# Faults of the product that are known and not mended, by their row of spec/faults.md. What they break is not
# reported as long as they stand here.
KNOWN: dict[str, str] = {}

_DEADLY = ("kill", "terminate", "pause-lease")
_TOKENS = ("prompt_tokens", "completion_tokens")


class Case:
    """The evidence, found by what it is about."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.rows: dict[str, Row] = {row["id"]: row for row in evidence.rows}
        self.rows_of: dict[str, list[Row]] = defaultdict(list)
        for row in evidence.rows:
            self.rows_of[row["user"]].append(row)
        self.asked_of: dict[str, list[Asked]] = defaultdict(list)
        for asked in evidence.asked:
            self.asked_of[asked.marker].append(asked)
        self.clients_of: dict[str, list[Client]] = defaultdict(list)
        for client in evidence.clients:
            if client.stream_id is not None:
                self.clients_of[client.stream_id].append(client)

    def asked(self, row: Row) -> Asked | None:
        return next(iter(self.asked_of.get(row["user"], ())), None)

    def clients(self, row: Row) -> list[Client]:
        return self.clients_of.get(row["id"], [])

    def stood_still(self, begin: float, end: float) -> bool:
        """Whether the provider was silent in that time because this process was: it is in it. What arrives in the
        meantime is noted when it goes on.
        """
        begin -= FIRST_BYTE_SECONDS
        still = [lag for at, lag in self.evidence.harness_lag if lag > 1 and at - lag < end and at > begin]
        return sum(still) > STILL_SECONDS

    def life(self, row: Row) -> tuple[float, float]:
        """When it can have begun at the earliest and ended at the latest."""
        asked, stream_id = self.asked(row), row["id"]
        moments: list[float] = []
        if asked is not None:
            moments += [asked.arrived_at, *([] if asked.over_at is None else [asked.over_at])]
        for client in self.clients(row):
            moments.append(client.started_at)
            moments += [frame.at for frame in client.frames[-1:]]
        for seen in (self.evidence.seen_running_at, self.evidence.seen_settled_at):
            if stream_id in seen:
                moments.append(seen[stream_id])
        if not moments:  # nobody heard of it
            return self.evidence.began_at, self.evidence.calm_at + ORPHANED_SECONDS
        return min(moments), max(moments)

    def faults(self, begin: float, end: float, *names: str, on: str = "", after: float = 0.0) -> list[Fault]:
        """Those that lay on the time from ``begin`` to ``end``, or had ended up to ``after`` before it.
        ``names`` are of faults, ``on`` of what they lie on, by its beginning.
        """
        return [
            fault
            for fault in self.evidence.faults
            if fault.began_at <= end
            and fault.ended_at + after >= begin
            and (not names or fault.name in names)
            and any(touched.startswith(on) for touched in fault.touches)
        ]


def check(evidence: Evidence) -> list[Violation]:
    case = Case(evidence)
    checks = (_i1, _i2, _i3, _i4, _i5, _i6, _i8, _i9, _i10, _i11, _i12)
    return [violation for one in checks for violation in one(case)]


# -- I1: one row, settled once, in time ------------------------------------------------------------


def _i1(case: Case) -> Iterator[Violation]:
    evidence = case.evidence
    for marker, asked in case.asked_of.items():
        rows = case.rows_of.get(marker, [])
        if len(asked) > 1:
            yield Violation("I1", marker, f"the provider was called {len(asked)} times for one start")
        if not rows:
            yield Violation("I1", marker, "the provider was called and there is no row")
    for marker, rows in case.rows_of.items():
        if len(rows) > 1:
            yield Violation("I1", marker, f"one start has {len(rows)} rows")
    for stream_id, clients in case.clients_of.items():
        ends = [client.end for client in clients if client.end is not None]
        unopened = any(_code(end) in ("overloaded", "draining") for end in ends)
        if stream_id not in case.rows and not unopened:
            yield Violation("I1", stream_id, "clients have the stream and there is no row")
    endings: Counter[str] = Counter()
    corrections: Counter[str] = Counter()
    for change in evidence.changes:
        stream_id = change["stream_id"]
        if change["was"] == "running":
            endings[stream_id] += 1
        elif change["was"] == change["became"] == "interrupted" and change["is_corrected"]:
            corrections[stream_id] += 1
            if change["was_corrected"]:
                yield Violation("I1", stream_id, "the numbers of a row were corrected twice")
        else:
            yield Violation("I1", stream_id, f"a settled row was written again: {dict(change)}")
    for stream_id, row in case.rows.items():
        if row["status"] == "running":
            yield Violation("I1", stream_id, "the row is still running at the end")
            continue
        if evidence.changes and endings[stream_id] != 1:
            yield Violation("I1", stream_id, f"the row was settled {endings[stream_id]} times")
        yield from _in_time(case, row)


def _in_time(case: Case, row: Row) -> Iterator[Violation]:
    asked = case.asked(row)
    seen = case.evidence.seen_running_at.get(row["id"])
    if asked is None or asked.over_at is None or seen is None:
        return
    due = asked.over_at + SETTLE_SECONDS + SLACK_SECONDS
    while later := [f.ended_at for f in case.faults(asked.over_at - 1, due) if _due_after(f) > due]:
        due = max(later) + SETTLE_SECONDS + SLACK_SECONDS
    if seen > due:
        over = seen - asked.over_at
        yield Violation("I1", row["id"], f"the row was still running {over:.1f} s after the stream's end")


def _due_after(fault: Fault) -> float:
    return fault.ended_at + SETTLE_SECONDS + SLACK_SECONDS


# -- I2: the numbers -------------------------------------------------------------------------------


def _i2(case: Case) -> Iterator[Violation]:
    for row in case.evidence.rows:
        if row["status"] == "running":
            continue
        for what in _tokens(case, row):
            yield Violation("I2", row["id"], what)
        cost = row["prompt_tokens"] * PRICE_IN + row["completion_tokens"] * PRICE_OUT
        if row["cost_picodollars"] != cost and not (row["cost_picodollars"] is None and not cost):
            yield Violation(
                "I2", row["id"], f"the cost is {row['cost_picodollars']} and not {cost} picodollars"
            )
        for client in case.clients(row):
            for what in _as_billed(row, client):
                yield Violation("I2", row["id"], what)
        receipt = case.evidence.receipts.get(row["id"])
        if receipt is not None:
            for name in ("status", "finish_reason", "error_code", *_TOKENS, "usage_source"):
                if receipt.get(name) != row[name]:
                    yield Violation(
                        "I2",
                        row["id"],
                        f"{name} is {receipt.get(name)} in the receipt, {row[name]} in the row",
                    )


def _tokens(case: Case, row: Row) -> Iterator[str]:
    """What is wrong with a row's tokens, beside what the provider said and clients have seen."""
    prompt, completion, source = row["prompt_tokens"], row["completion_tokens"], row["usage_source"]
    asked = case.asked(row)
    counted_prompt = count_prompt(row["user"])
    if asked is None:
        if completion or prompt not in (0, counted_prompt):
            yield f"{prompt} and {completion} tokens of a provider that was not called"
        return
    plan, said = asked.plan, asked.said
    seen = max((plan.chunks_in(client.text) for client in case.clients(row)), default=0)
    numbers = (
        f"{prompt} and {completion} tokens ({source}), of {plan.tokens[said]} sent, {plan.tokens[seen]} seen"
    )
    if source == "provider_final":
        final = (plan.prompt_tokens, plan.hidden + plan.tokens[-1])
        if plan.counting == "missing" or not plan.completes or (prompt, completion) != final:
            yield f"{numbers}; the provider's last word was {final if plan.completes else None}"
    elif source == "provider_partial":
        running = [k for k in range(1, said + 1) if plan.running_count_after(k)]
        if prompt != plan.prompt_tokens or completion not in {plan.hidden + plan.tokens[k] for k in running}:
            yield f"{numbers}; the provider never said so"
        elif completion < plan.hidden + plan.tokens[seen] and row["status"] != "interrupted":
            yield f"{numbers}; less than was seen"
    elif source == "counted":
        fine = {counted_prompt}
        if plan.counting in ("running", "sparse"):
            fine.add(plan.prompt_tokens)
        if plan.ending == "refused" or (row["error_code"] and not said):
            fine.add(0)
        least = plan.tokens[-1] if row["status"] == "completed" else plan.tokens[seen]
        if row["status"] == "interrupted":
            least = 0  # seen before the worker slept, and counted by it when it woke up, or not at all
        if prompt not in fine or not least <= completion <= plan.tokens[said]:
            yield f"{numbers}; counted prompt {counted_prompt}"
        if row["status"] == "completed" and plan.counting != "missing":
            yield f"{numbers}; the provider's last word was not taken"
    else:
        if row["status"] != "interrupted" or row["corrected_at"] is not None:
            yield f"{numbers}; a {row['status']} row has the numbers of a checkpoint"
        if completion > plan.hidden + plan.tokens[said]:
            yield f"{numbers}; more than was sent"
        least = _at_last_checkpoint(case, row, asked)
        if completion < least:
            yield f"{numbers}; the last checkpoint had at least {least}"


def _at_last_checkpoint(case: Case, row: Row, asked: Asked) -> int:
    """Tokens that a checkpoint before the worker's end must have had."""
    begin, end = case.life(row)
    deadly = case.faults(asked.arrived_at, end, *_DEADLY)
    if not deadly:
        return 0
    dead_at = min(fault.began_at for fault in deadly)
    others = [f for f in case.faults(begin - 1, dead_at, after=10) if f.began_at < dead_at]
    if others:  # which may have held the checkpoint up
        return 0
    chunks = sum(at < dead_at - CHECKPOINT_SECONDS for at in asked.said_at)
    return asked.plan.tokens[chunks]


def _as_billed(row: Row, client: Client) -> Iterator[str]:
    """What a client's end says of the bill, beside the row."""
    end = client.end
    usage = None if end is None else end.get("usage")
    if end is None or not isinstance(usage, Mapping):
        return
    shown = [usage.get("prompt_tokens"), usage.get("completion_tokens"), usage.get("source")]
    kept = [row["prompt_tokens"], row["completion_tokens"], row["usage_source"]]
    if row["status"] == "interrupted" and (row["corrected_at"] is not None or _code(end) != "interrupted"):
        # The producer's numbers came after the end that others had set, or its own end was not settled.
        return
    if shown != kept:
        yield f"a client was told {shown} and the row has {kept}"
    cost, picodollars = usage.get("cost_usd"), row["cost_picodollars"]
    if cost is not None and picodollars is not None and round(float(cost) * 10**12) != picodollars:
        yield f"a client was told a cost of {cost} and the row has {picodollars} picodollars"


# -- I3: the text ----------------------------------------------------------------------------------


def _without_bill(case: Case, client: Client, end: Mapping[str, Any] | None) -> Any:
    """What an end says, but for its bill where that may be another one: Redis has lost the end with the bill of
    the checkpoint, and the row, which the next one is made of, was corrected since.
    """
    row = case.rows.get(client.stream_id or "")
    if end is None or row is None or row["corrected_at"] is None:
        return end
    if not case.faults(*case.life(row), "redis-kill"):
        return end
    return {key: value for key, value in end.items() if key != "usage"}


def _i3(case: Case) -> Iterator[Violation]:
    said: dict[tuple[str, tuple[int, int]], tuple[str, Any]] = {}
    for client in case.evidence.clients:
        name = client.stream_id or client.marker
        last: tuple[int, int] | None = None
        for frame in client.frames:
            if last is None:
                fits = frame.position == (1, 1)
            else:
                fits = frame.position in ((last[0], last[1] + 1), (last[0] + 1, 1))
            if not fits:
                yield Violation("I3", name, f"after position {last} came {frame.position}")
                break
            last = frame.position
            if client.stream_id is not None:
                what = (frame.text, _without_bill(case, client, frame.end))
                if said.setdefault((client.stream_id, frame.position), what) != what:
                    yield Violation("I3", name, f"two readers got different frames at {frame.position}")
                    break
        asked = next(iter(case.asked_of.get(client.marker, ())), None)
        if asked is None:
            if client.text:
                yield Violation("I3", name, f"text without a provider: {client.text[:60]!r}")
            continue
        if not asked.text.startswith(client.text):
            yield Violation(
                "I3", name, f"the text is no prefix: {client.text[-60:]!r} of {len(client.text)} characters"
            )
        elif _completed(client.end) and client.text != asked.plan.text:
            yield Violation(
                "I3", name, f"complete with {len(client.text)} of {len(asked.plan.text)} characters"
            )
        if client.outcome == "gone" and not _may_be_gone(case, client):
            yield Violation("I3", name, "the events were gone (410) and nothing explains it")


def _may_be_gone(case: Case, client: Client) -> bool:
    """Whether the journal can have lost the stream since it was started."""
    until = client.done_at or case.evidence.calm_at
    if until - client.started_at > WINDOW_SECONDS:
        return True
    if case.evidence.set_up == "single":  # the journal lives in the worker
        return bool(case.faults(client.started_at, until, "kill", "terminate"))
    return bool(case.faults(client.started_at, until, on="log", after=SLACK_SECONDS))


# -- I4: the end -----------------------------------------------------------------------------------


def _i4(case: Case) -> Iterator[Violation]:
    for client in case.evidence.clients:
        name = client.stream_id or client.marker
        if client.after_end:
            yield Violation("I4", name, f"after the end came {client.after_end[0]!r}")
        for what in client.malformed[:1]:
            yield Violation("I4", name, what)
        if client.outcome in ("lost", "open", "no-end", "no-stream") and not _out_of_date(case, client):
            how = [(c.worker, c.status, c.how) for c in client.connections[-4:]]
            yield Violation("I4", name, f"a client never got an end ({client.outcome}): {how}")
        row = case.rows.get(client.stream_id or "")
        if row is not None and client.end is not None and client.whole is None:
            yield from _same_end(case, client, row)
    for row in case.evidence.rows:
        why = _unexplained(case, row)
        if why:
            yield Violation("I4", row["id"], why)


def _out_of_date(case: Case, client: Client) -> bool:
    """Whether its ticket was made or looked at by a wrong clock (T1)."""
    last = next(reversed(client.connections), None)
    if client.plan.kind != "ticket" or last is None or last.status != 401:
        return False
    return bool(case.faults(client.started_at, last.at, "clock", after=SLACK_SECONDS))


def _same_end(case: Case, client: Client, row: Row) -> Iterator[Violation]:
    end = client.end
    assert end is not None
    code, reason = _code(end), end.get("finish_reason")
    if code is not None:
        fits = row["error_code"] == code and row["status"] == (
            "interrupted" if code == "interrupted" else "failed"
        )
    else:
        status = "cancelled" if reason == "cancelled" else "completed"
        fits = (row["status"], row["finish_reason"]) == (status, reason)
    if fits:
        return
    ended_at = next((frame.at for frame in client.frames if frame.end is not None), 0.0)
    if row["status"] == "interrupted" and _was_not_settled(case, ended_at):
        return
    journal_was_away = case.faults(*case.life(row), on="log", after=SLACK_SECONDS)
    if code == "interrupted" and journal_was_away and case.faults(*case.life(row), *_DEADLY):
        return  # the end was settled, and lost with its worker before the journal was back
    yield Violation(
        "I4",
        row["id"],
        f"a client saw the end {code or reason} and the row is {row['status']} {row['error_code'] or ''}",
    )


def _was_not_settled(case: Case, ended_at: float) -> bool:
    """Whether a worker can have gone after its readers saw an end and before it was settled."""
    for deadly in case.faults(ended_at - 1, case.evidence.calm_at, *_DEADLY):
        if (
            case.evidence.set_up == "fleet"
        ):  # the log has what readers see, and whoever settles it looks there
            lost = case.faults(
                ended_at - 1, deadly.ended_at + ORPHANED_SECONDS, on="log", after=SLACK_SECONDS
            )
            if lost:
                return True
            continue
        held_up = [
            f for f in case.faults(ended_at - 1, deadly.began_at, after=SLACK_SECONDS) if f is not deadly
        ]
        if deadly.began_at - ended_at < RACE_SECONDS or held_up:
            return True
    return False


def _unexplained(case: Case, row: Row) -> str:
    """What is odd about how the stream ended, where nothing that happened explains it."""
    status = row["status"]
    asked, clients = case.asked(row), case.clients(row)
    begin, end = case.life(row)
    plan = None if asked is None else asked.plan
    at_work = case.faults(begin - 1, end, on="worker", after=SLACK_SECONDS)
    if status == "completed":
        if asked is None or plan is None or not plan.completes or asked.said < len(plan.chunks):
            return f"completed, though the provider's answer ended with {plan and plan.ending}"
        return "" if row["finish_reason"] == plan.ending else f"{row['finish_reason']} is not {plan.ending}"
    if status == "cancelled":
        stopped = any(client.cancels for client in clients)
        policies = {str(client.plan.policy) for client in clients}
        lost = not clients or any(c.how != "whole" for client in clients for c in client.connections)
        if stopped or at_work or (lost and policies != {"continue"}):
            return ""
        return f"cancelled, and nobody did: policies {sorted(policies)}"
    if status == "interrupted":
        if case.faults(begin - 1, end, *_DEADLY, after=ORPHANED_SECONDS):
            return ""
        if case.faults(begin - 1, end, "pause", after=LEASE_SECONDS) and case.faults(
            begin - 1, end, on="database", after=LEASE_SECONDS
        ):
            return ""  # together they are longer than a lease
        return "interrupted, and no worker was gone"
    if status == "failed":
        return _failed_for_nothing(case, row, asked, begin, end)
    return ""


def _failed_for_nothing(case: Case, row: Row, asked: Asked | None, begin: float, end: float) -> str:
    code = str(row["error_code"])
    plan = None if asked is None else asked.plan
    if code == "overloaded":
        away = case.faults(begin - 1, end, on="database", after=SLACK_SECONDS)
        pressed = case.faults(begin - 1, end, "descriptors", "pause", "pause-lease", after=SLACK_SECONDS)
        return "" if away or pressed else "overloaded, and the database was there"
    if not code.startswith("upstream"):
        return f"failed with {code}"
    if plan is not None and not plan.completes:
        wanted = {"refused": "upstream_rate_limited" if plan.status == 429 else "upstream_error"}
        expected = wanted.get(
            plan.ending, "upstream_timeout" if plan.ending == "silence" else "upstream_error"
        )
        if code == expected:
            return ""
    if case.faults(begin - 1, end, "descriptors", "pause", "pause-lease", after=SLACK_SECONDS):
        return ""
    if end - begin > STREAM_SECONDS:
        return ""
    if code == "upstream_timeout" and case.stood_still(begin, end):
        return ""
    return f"{code}, and the provider's plan was {plan and plan.ending}"


# -- I5: the provider's socket ---------------------------------------------------------------------


def _i5(case: Case) -> Iterator[Violation]:
    evidence = case.evidence
    for row in evidence.rows:
        asked = case.asked(row)
        if asked is None:
            continue
        if asked.over_at is None:
            yield Violation("I5", row["id"], "the provider's socket was never closed")
            continue
        for what, moment in _decisions(case, row):
            due = moment + CLOSE_SECONDS
            held = case.faults(moment - CLOSE_SECONDS, due, after=SLACK_SECONDS)
            if held:
                due = max(due, max(fault.ended_at for fault in held) + CLOSE_SECONDS + SLACK_SECONDS)
            if asked.over_at > due:
                late = asked.over_at - moment
                yield Violation("I5", row["id"], f"the provider's socket closed {late:.1f} s after {what}")
                break


def _decisions(case: Case, row: Row) -> Iterator[tuple[str, float]]:
    """The moments when it was sure that the provider is to stop."""
    settled = case.evidence.seen_settled_at.get(row["id"])
    if settled is not None:
        yield "the row was settled", settled
    clients = case.clients(row)
    for client in clients:
        for cancel in client.cancels:
            if cancel.status == 200 and cancel.answered_at is not None:
                yield "a cancel", cancel.answered_at
    if clients and all(c.plan.policy == "cancel" and c.outcome == "left" for c in clients):
        yield "the last reader left", max(c.done_at or 0.0 for c in clients)


def delays(evidence: Evidence) -> list[float]:
    """From a cancel that was answered, or the last reader's leaving, to the closed socket, without faults."""
    case, found = Case(evidence), []
    for row in evidence.rows:
        asked = case.asked(row)
        if asked is None or asked.finished or asked.closed_at is None:
            continue
        for what, moment in _decisions(case, row):
            if what != "the row was settled" and not case.faults(moment - 5, moment + 5, after=SLACK_SECONDS):
                found.append(max(0.0, asked.closed_at - moment))
                break
    return sorted(found)


# -- I6: what is given back ------------------------------------------------------------------------


def resources_held(evidence: Evidence) -> list[str]:
    """What has not gone back to where it was."""
    held: list[str] = []
    if not evidence.before:
        return held
    descriptors = max(sample.descriptors for sample in evidence.before)
    threads = max(sample.threads for sample in evidence.before)
    for sample in evidence.after:
        if sample.descriptors > descriptors + DESCRIPTORS:
            held.append(
                f"worker {sample.worker}: {sample.descriptors} descriptors, {descriptors} before: {sample.kinds}"
            )
        if sample.threads > threads + THREADS:
            held.append(f"worker {sample.worker}: {sample.threads} threads, {threads} before")
    if evidence.left_open:
        held.append(f"{evidence.left_open} connections to the provider")
    return held


def _i6(case: Case) -> Iterator[Violation]:
    evidence = case.evidence
    for what in resources_held(evidence):
        yield Violation("I6", "", what)
    before, after = evidence.redis_connections
    if after > len(evidence.after) * REDIS_CONNECTIONS + 1:  # and ours
        yield Violation("I6", "", f"{after} connections to Redis, {before} before")
    for key, seconds in evidence.redis_keys.items():
        if not 0 <= seconds <= WINDOW_SECONDS:
            stream_id = key.rpartition(":")[2]
            row = case.rows.get(stream_id)
            deadly = case.faults(evidence.began_at, evidence.calm_at, *_DEADLY)
            if 0 <= seconds <= WINDOW_SECONDS + STREAM_SECONDS and (row is None or deadly):
                continue  # of a worker that went before it could say that it had ended
            yield Violation("I6", stream_id, f"Redis keeps it for {seconds} s")


# -- I8: memory ------------------------------------------------------------------------------------


def _i8(case: Case) -> Iterator[Violation]:
    evidence = case.evidence
    if not evidence.before:
        return
    base = max(sample.rss for sample in evidence.before)
    bound = base + MEMORY_BASE + MEMORY_SHARE * len(evidence.rows)
    worst: dict[int, Sample] = {}
    for sample in evidence.samples:
        if sample.rss > worst.setdefault(sample.worker, sample).rss:
            worst[sample.worker] = sample
    for sample in worst.values():
        if sample.rss > bound:
            yield Violation(
                "I8",
                "",
                f"worker {sample.worker} had {sample.rss >> 20} MiB, {base >> 20} before the streams",
            )


# -- I9: secrets -----------------------------------------------------------------------------------


def _i9(case: Case) -> Iterator[Violation]:
    evidence = case.evidence
    for name, text in evidence.logs.items():
        for what, secret in evidence.secrets.items():
            if (place := text.find(secret)) >= 0:
                around = text[max(0, place - 80) : place].rpartition("\n")[2]
                yield Violation("I9", "", f"{what} is in the log of {name}: {around!r} …")
    for body in evidence.bodies:
        for what, secret in evidence.secrets.items():
            if secret in body:
                yield Violation("I9", "", f"{what} is in an error: {body[:120]!r}")


# -- I10: other people's streams -------------------------------------------------------------------


def _i10(case: Case) -> Iterator[Violation]:
    for probe in case.evidence.probes:
        if probe.what != "foreign" or probe.status in (None, 404, 503):
            continue
        if probe.status == 200 and _asks_to_come_back(probe):
            continue
        yield Violation(
            "I10", probe.stream_id or "", f"a foreign key got {probe.status}: {probe.body[:80]!r}"
        )


def _asks_to_come_back(probe: Probe) -> bool:
    """Nothing but the time after which to try again."""
    return re.fullmatch(r"(retry: \d+\n+)?", probe.body) is not None


# -- I11: the others -------------------------------------------------------------------------------


def _lags(case: Case, *, quiet: bool) -> list[float]:
    """How long each word took from the provider to its first reader: in ``quiet`` times, or on workers that
    nothing was done to while something was done to others."""
    found: list[float] = []
    for client in case.evidence.clients:
        asked = next(iter(case.asked_of.get(client.marker, ())), None)
        first = next(iter(client.connections), None)
        if asked is None or first is None or first.follows or client.plan.kind in ("slow", "repeater"):
            continue
        around = case.faults(first.at - 1, first.ended_at or first.at, after=SLACK_SECONDS)
        here = f"worker:{first.worker}"
        others = [f for f in around if all(t.startswith("worker") and t != here for t in f.touches)]
        if (quiet and not around) or (not quiet and around and len(others) == len(around)):
            texts = [frame.at for frame in client.frames[: first.frames] if frame.text]
            found += [at - said for at, said in zip(texts, asked.said_at, strict=False)]
    return sorted(found)


def _p99(values: Sequence[float]) -> float:
    return values[len(values) * 99 // 100] if values else 0.0


def _i11(case: Case) -> Iterator[Violation]:
    evidence = case.evidence
    noise = _p99(sorted(lag for _, lag in evidence.harness_lag))
    calm = _lags(case, quiet=True)
    if len(calm) >= 200 and _p99(calm) > LAG_SECONDS + 2 * noise:
        yield Violation("I11", "", f"without a fault the p99 of a word's way was {_p99(calm):.2f} s")
    beside = _lags(case, quiet=False)
    if len(beside) >= 200 and _p99(beside) > max(2 * _p99(calm), LAG_SECONDS + 2 * noise):
        yield Violation("I11", "", f"beside faults of other workers the p99 was {_p99(beside):.2f} s")
    for probe in evidence.probes:
        if probe.what != "ready" or probe.status == 200:
            continue
        around = case.faults(probe.at - 1, probe.ended_at, after=2 * SLACK_SECONDS)
        here = f"worker:{probe.worker}"
        if not [f for f in around if here in f.touches or not all(t.startswith("worker") for t in f.touches)]:
            yield Violation(
                "I11", "", f"worker {probe.worker} was not ready: {probe.status} {probe.body[:60]}"
            )


# -- I12: nothing makes it fail --------------------------------------------------------------------


def _i12(case: Case) -> Iterator[Violation]:
    evidence = case.evidence
    for probe in evidence.probes:
        if probe.what != "junk":
            continue
        fine = probe.status is not None and 400 <= probe.status < 500
        around = case.faults(probe.at - 1, probe.ended_at, after=2 * SLACK_SECONDS)
        excused = around and (probe.status in (None, 503) or _asks_to_come_back(probe))
        if not (fine or excused):
            yield Violation("I12", "", f"bad input got {probe.status}: {probe.body[:80]!r}")
    for body in evidence.bodies:
        if '"internal"' in body:
            yield Violation("I12", "", f"an internal error: {body[:120]}: {_logged(evidence, body)}")
    for row in evidence.rows:
        if row["error_code"] == "internal":
            yield Violation("I12", row["id"], "failed with internal")
    for exit_ in evidence.exits:
        if not _may_end(case, exit_):
            yield Violation("I12", "", f"worker {exit_.worker} ended with {exit_.code} {exit_.what}")
    never_served = {exit_.run for exit_ in evidence.exits if exit_.what == "before it served"}
    for name, text in evidence.logs.items():
        if name not in never_served and (place := text.find("Traceback (most recent call last)")) >= 0:
            last = text[place:].split("\n\n")[0].strip().splitlines()[-1]
            yield Violation("I12", "", f"an exception that nobody handled, in {name}: {last[:160]}")


def _logged(evidence: Evidence, body: str) -> str:
    """The line of a log about the error that a body tells of."""
    named = re.search(r"details under ((?:req|str)_[\w-]+)", body)
    lines = (line for text in evidence.logs.values() for line in text.splitlines() if " ERROR " in line)
    return next((line[:600] for line in lines if named and named[1] in line), "nothing in the logs")


def _may_end(case: Case, exit_: Exit) -> bool:
    if exit_.expected:
        return exit_.code in (0, -9)
    stores = [f for f in case.faults(exit_.at - 20, exit_.at, after=SLACK_SECONDS) if _on_a_store(f)]
    return bool(exit_.what == "before it served" and exit_.code in (1, 2, 3) and stores)


def _on_a_store(fault: Fault) -> bool:
    return not all(touched.startswith("worker") for touched in fault.touches)


# -- for the summary -------------------------------------------------------------------------------


def _code(end: Mapping[str, Any]) -> str | None:
    error = end.get("error")
    return str(error["code"]) if isinstance(error, Mapping) else None


def _completed(end: Mapping[str, Any] | None) -> bool:
    return end is not None and end.get("finish_reason") in ("stop", "length")


def figures(evidence: Evidence) -> Iterable[str]:
    case = Case(evidence)
    closing = delays(evidence)
    yield f"provider closed after a decision: p99 {_p99(closing) * 1000:.0f} ms of {len(closing)}"
    for name, lags in (("in quiet", _lags(case, quiet=True)), ("beside faults", _lags(case, quiet=False))):
        yield f"a word's way {name}: p99 {_p99(lags) * 1000:.0f} ms of {len(lags)}"
    noise = sorted(lag for _, lag in evidence.harness_lag)
    yield f"this process itself was late: p99 {_p99(noise) * 1000:.0f} ms"
    unsettled = sum(
        row["status"] == "interrupted" and any(_completed(client.end) for client in case.clients(row))
        for row in evidence.rows
    )
    yield f"ends that readers saw and whose worker was killed before it settled them: {unsettled}"
    corrected = sum(row["corrected_at"] is not None for row in evidence.rows)
    yield f"rows that were corrected after a lease: {corrected}"
    if evidence.before:
        most = max((sample.rss for sample in evidence.samples), default=0)
        yield f"memory of a worker: {max(s.rss for s in evidence.before) >> 20} MiB, then {most >> 20} at the most"


_VARIABLE = re.compile(r"str_[\w-]+|wrk_[\w-]+|\d+(\.\d+)?")


def log_lines(evidence: Evidence) -> Counter[str]:
    """The kinds of lines in the workers' logs."""
    lines: Counter[str] = Counter()
    for text in evidence.logs.values():
        lines.update(_VARIABLE.sub("#", line)[:150] for line in text.splitlines() if line.strip())
    return lines
