"""The checker of the nemesis, on records made by hand: a good run passes, and each thing that is broken is found."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from nemesis import checker
from nemesis.plans import (
    CANARY_PROMPT,
    PRICE_IN,
    PRICE_OUT,
    ClientPlan,
    StreamPlan,
    client_plans,
    count,
    count_prompt,
    fault_plans,
    stream_plan,
)
from nemesis.records import Asked, Cancel, Client, Connection, Evidence, Exit, Fault, Frame, Probe, Sample

STREAM, MARKER = "str_one", "n1.0"
CHUNKS = (" river", " stone lamp", " moon")
TOKENS = tuple(count("".join(CHUNKS[:k])) for k in range(4))


def usage(prompt: int, completion: int, source: str) -> dict[str, Any]:
    picodollars = prompt * PRICE_IN + completion * PRICE_OUT
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "source": source,
        "cost_usd": f"{picodollars / 10**12:.12f}",
    }


def row(prompt: int, completion: int, source: str, status: str = "completed", **more: Any) -> dict[str, Any]:
    return {
        "id": STREAM,
        "user": MARKER,
        "status": status,
        "finish_reason": {"completed": "stop", "cancelled": "cancelled"}.get(status),
        "error_code": None,
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "usage_source": source,
        "cost_picodollars": prompt * PRICE_IN + completion * PRICE_OUT,
        "corrected_at": None,
        **more,
    }


def change(was: str = "running", became: str = "completed", **more: int) -> dict[str, Any]:
    return {
        "stream_id": STREAM,
        "was": was,
        "became": became,
        "was_corrected": 0,
        "is_corrected": 0,
        **more,
    }


def good() -> Evidence:
    """One stream that completes, with one reader."""
    plan = StreamPlan(MARKER, CHUNKS, TOKENS, "stop", "final", prompt_tokens=9, hidden=5)
    asked = Asked(plan, 10.0, [10.1, 10.2, 10.3], finished=True, ended_at=10.4)
    bill = usage(9, 5 + TOKENS[3], "provider_final")
    frames = [Frame((1, 1), 10.1), Frame((1, 2), 10.1)]
    frames += [Frame((1, 3 + i), 10.2 + i / 10, text) for i, text in enumerate(CHUNKS)]
    frames += [Frame((1, 6), 10.5), Frame((1, 7), 10.5, "", {"finish_reason": "stop", "usage": bill})]
    client = Client(
        ClientPlan(1, 0, "reader", "continue", 0),
        MARKER,
        STREAM,
        started_at=9.9,
        frames=frames,
        connections=[Connection(0, 9.9, status=200, how="whole", ended_at=10.5, frames=7)],
        outcome="ended",
        done_at=10.5,
    )
    kept = row(9, 5 + TOKENS[3], "provider_final")
    return Evidence(
        began_at=0.0,
        calm_at=20.0,
        asked=[asked],
        clients=[client],
        rows=[kept],
        changes=[change()],
        receipts={STREAM: kept},
        seen_running_at={STREAM: 10.0},
        seen_settled_at={STREAM: 10.6},
        logs={"worker-0": "all is well"},
        secrets={"a prompt": CANARY_PROMPT, "a key": "abcdefgh"},
        before=[Sample(0, 1, 0.0, 100 << 20, 20, 8)],
        samples=[Sample(0, 1, 5.0, 110 << 20, 40, 9)],
        after=[Sample(0, 1, 20.0, 110 << 20, 21, 9)],
        probes=[Probe("ready", 0, 5.0, 200, ended_at=5.1), Probe("foreign", 0, 5.0, 404)],
        exits=[Exit(0, 21.0, 0, True)],
    )


def cancelled(policy: str = "continue") -> Evidence:
    """The same, stopped by its client after two pieces."""
    found = good()
    found.asked[0] = replace(
        found.asked[0], said_at=[10.1, 10.2], finished=False, ended_at=None, closed_at=10.35
    )
    bill = usage(count_prompt(MARKER), TOKENS[2], "counted")
    client = found.clients[0]
    client.plan = replace(client.plan, policy=policy)
    client.frames = client.frames[:4]
    client.frames.append(Frame((1, 5), 10.4, "", {"finish_reason": "cancelled", "usage": bill}))
    client.cancels = [Cancel(0, 10.3, 10.35, 200)]
    found.rows = [row(count_prompt(MARKER), TOKENS[2], "counted", "cancelled")]
    found.changes = [change(became="cancelled")]
    found.receipts = {}
    return found


def killed() -> Evidence:
    """The same, with a worker that was killed after two pieces, and ended by another one."""
    found = cancelled()
    client = found.clients[0]
    bill = usage(count_prompt(MARKER), TOKENS[1], "checkpoint")
    failure = {"error": {"code": "interrupted"}, "usage": bill}
    client.cancels = []
    client.frames[-1] = Frame((2, 1), 30.0, "", failure)
    client.done_at = 30.0
    found.faults = [Fault("kill", frozenset({"worker:0"}), 10.3, 12.0)]
    found.rows = [row(count_prompt(MARKER), TOKENS[1], "checkpoint", "interrupted", error_code="interrupted")]
    found.changes = [change(became="interrupted")]
    found.seen_running_at, found.seen_settled_at = {STREAM: 29.0}, {STREAM: 29.5}
    return found


@pytest.mark.parametrize("make", [good, cancelled, killed])
def test_a_good_run_has_no_violation(make: Callable[[], Evidence]) -> None:
    assert checker.check(make()) == []


def test_what_another_worker_set_may_be_corrected_once() -> None:
    found = killed()
    found.rows = [
        row(
            count_prompt(MARKER),
            TOKENS[2],
            "counted",
            "interrupted",
            error_code="interrupted",
            corrected_at=31.0,
        )
    ]
    found.changes.append(change("interrupted", "interrupted", is_corrected=1))
    assert checker.check(found) == []
    found.changes.append(change("interrupted", "interrupted", is_corrected=1, was_corrected=1))
    assert [violation.invariant for violation in checker.check(found)] == ["I1"]


@pytest.mark.parametrize(
    ("corrected", "lost", "text", "found"),
    [
        (31.0, True, "", []),
        (None, True, "", ["I3"]),
        (31.0, False, "", ["I3"]),
        (31.0, True, " more", ["I3"]),
    ],
)
def test_a_corrected_bill_may_be_told_where_the_first_end_was_lost(
    corrected: float | None, lost: bool, text: str, found: list[str]
) -> None:
    made = killed()
    (kept,) = made.rows
    made.rows = [{**kept, "corrected_at": corrected}]
    again = replace(made.clients[0], frames=list(made.clients[0].frames))
    later = {"error": {"code": "interrupted"}, "usage": usage(count_prompt(MARKER), TOKENS[2], "counted")}
    again.frames[-1] = Frame((2, 1), 40.0, text, later)
    made.clients.append(again)
    if lost:
        made.faults.append(Fault("redis-kill", frozenset({"log"}), 31.0, 35.0))
    assert [v.invariant for v in checker.check(made) if "different frames" in str(v)] == found


Break = Callable[[Evidence], Any]


def _row(**values: Any) -> Break:
    def broken(found: Evidence) -> None:
        found.rows = [{**found.rows[0], **values}]
        found.receipts = {}

    return broken


def _frames(new: Callable[[list[Frame]], list[Frame]]) -> Break:
    def broken(found: Evidence) -> None:
        found.clients[0].frames = new(found.clients[0].frames)

    return broken


def _client(**values: Any) -> Break:
    def broken(found: Evidence) -> None:
        found.clients[0] = replace(found.clients[0], **values)

    return broken


def _asked(**values: Any) -> Break:
    def broken(found: Evidence) -> None:
        found.asked[0] = replace(found.asked[0], **values)

    return broken


BROKEN: list[tuple[str, str, Callable[[], Evidence], Break]] = [
    ("I1", "no row", good, lambda e: e.rows.clear()),
    ("I1", "two rows", good, lambda e: e.rows.append({**e.rows[0], "id": "str_two"})),
    ("I1", "two calls", good, lambda e: e.asked.append(e.asked[0])),
    ("I1", "not settled", good, _row(status="running")),
    ("I1", "settled twice", good, lambda e: e.changes.append(change())),
    ("I1", "written after it", good, lambda e: e.changes.append(change("completed", "completed"))),
    ("I1", "too late", good, lambda e: e.seen_running_at.update({STREAM: 50.0})),
    ("I2", "one token more", good, _row(completion_tokens=6 + TOKENS[3])),
    ("I2", "another cost", good, _row(cost_picodollars=1)),
    ("I2", "counted, where the provider had said it", good, _row(usage_source="counted")),
    ("I2", "a receipt of its own", good, lambda e: e.receipts.update({STREAM: {**e.rows[0], "status": "failed"}})),
    ("I2", "less than was seen", cancelled, _row(completion_tokens=TOKENS[1])),
    ("I2", "more than was sent", cancelled, _row(completion_tokens=TOKENS[2] + 1)),
    ("I2", "a prompt that was not sent", cancelled, _row(prompt_tokens=count_prompt(MARKER) + 1)),
    ("I2", "more than was sent before a kill", killed, _row(completion_tokens=TOKENS[3] + 9)),
    ("I2", "less than the last checkpoint", killed, _asked(arrived_at=1.0, said_at=[1.0, 2.0])),
    ("I3", "a gap", good, _frames(lambda frames: frames[:3] + frames[4:])),
    ("I3", "a repetition", good, _frames(lambda frames: [*frames[:4], *frames[3:]])),
    ("I3", "no beginning", good, _frames(lambda frames: frames[1:])),
    ("I3", "other words", good, _frames(lambda f: [*f[:4], Frame((1, 5), 10.4, " sun"), *f[5:]])),
    ("I3", "less than all", good, _frames(lambda f: [*f[:4], Frame((1, 5), 10.4, ""), *f[5:]])),
    ("I3", "gone for nothing", good, _client(outcome="gone")),
    ("I3", "another frame for another reader", good, lambda e: e.clients.append(
        replace(e.clients[0], frames=[Frame((1, 1), 11.0, "", {"error": {"code": "x"}})])
    )),
    ("I4", "something after the end", good, _client(after_end=["id: 1-8"])),
    ("I4", "no end", good, _client(outcome="lost")),
    ("I4", "the row says otherwise", good, _row(finish_reason="length")),
    ("I4", "success of a cut", good, lambda e: setattr(e.asked[0], "plan", replace(e.asked[0].plan, ending="cut"))),
    ("I4", "cancelled by nobody", cancelled, _client(cancels=[])),
    ("I4", "interrupted without a kill", killed, lambda e: e.faults.clear()),
    ("I5", "closed late", cancelled, _asked(closed_at=15.0)),
    ("I5", "never closed", cancelled, _asked(closed_at=None)),
    ("I6", "descriptors", good, lambda e: e.after.append(Sample(0, 1, 20.0, 1, 90, 8))),
    ("I6", "threads", good, lambda e: e.after.append(Sample(0, 1, 20.0, 1, 20, 90))),
    ("I6", "connections to the provider", good, lambda e: setattr(e, "left_open", 3)),
    ("I6", "connections to Redis", good, lambda e: setattr(e, "redis_connections", (9, 90))),
    ("I6", "keys for ever", good, lambda e: e.redis_keys.update({f"millstream:stream:{STREAM}": -1})),
    ("I8", "memory", good, lambda e: e.samples.append(Sample(0, 1, 6.0, 400 << 20, 20, 8))),
    ("I9", "a prompt in a log", good, lambda e: e.logs.update({"w": f"x\nasked {CANARY_PROMPT} n1"})),
    ("I9", "a key in an error", good, lambda e: e.bodies.append('{"error": "abcdefgh"}')),
    ("I10", "a receipt for a stranger", good, lambda e: e.probes.append(Probe("foreign", 0, 5.0, 200, "{}"))),
    ("I10", "gone is not missing", good, lambda e: e.probes.append(Probe("foreign", 0, 5.0, 410))),
    ("I11", "not ready", good, lambda e: e.probes.append(Probe("ready", 0, 6.0, 503, ended_at=6.1))),
    ("I11", "late words", good, lambda e: e.clients.extend(
        replace(e.clients[0], frames=[replace(f, at=f.at + 4) for f in e.clients[0].frames]) for _ in range(100)
    )),
    ("I12", "500 for bad input", good, lambda e: e.probes.append(Probe("junk", 0, 6.0, 500))),
    ("I12", "an internal error", good, lambda e: e.bodies.append('{"error":{"code":"internal"}}')),
    ("I12", "a worker that ends by itself", good, lambda e: e.exits.append(Exit(0, 9.0, 1, False))),
    ("I12", "a traceback", good, lambda e: e.logs.update({"w": "Traceback (most recent call last):\n  KeyError"})),
]  # fmt: skip


@pytest.mark.parametrize(
    ("invariant", "make", "broken"),
    [
        pytest.param(invariant, make, broken, id=f"{invariant} {what}")
        for invariant, what, make, broken in BROKEN
    ],
)
def test_what_is_broken_is_found(invariant: str, make: Callable[[], Evidence], broken: Break) -> None:
    found = make()
    broken(found)
    assert invariant in {violation.invariant for violation in checker.check(found)}


def timed_out() -> Evidence:
    """The provider fell silent, though it was to go on."""
    found = cancelled()
    found.rows = [
        {**found.rows[0], "status": "failed", "finish_reason": None, "error_code": "upstream_timeout"}
    ]
    found.changes = [{**found.changes[0], "became": "failed"}]
    found.clients[0].cancels.clear()
    found.clients[0].frames[-1] = replace(
        found.clients[0].frames[-1],
        end={"error": {"code": "upstream_timeout"}, "usage": found.clients[0].end["usage"]},  # type: ignore[index]
    )
    return found


@pytest.mark.parametrize(
    ("late", "excused"), [((10.4, 6.7), True), ((10.4, 0.3), False), ((30.0, 6.7), False)]
)
def test_a_provider_is_silent_while_its_process_stands_still(
    late: tuple[float, float], excused: bool
) -> None:
    found = timed_out()
    found.harness_lag = [late]
    said = [v for v in checker.check(found) if "upstream_timeout, and the provider's plan" in str(v)]
    assert (not said) == excused


def test_a_ticket_that_never_got_a_connection_is_a_client_without_an_end() -> None:
    found = good()
    found.clients[0].plan = replace(found.clients[0].plan, kind="ticket")
    found.clients[0].connections, found.clients[0].outcome = [], "no-stream"
    assert "I4" in {violation.invariant for violation in checker.check(found)}


def test_a_seed_makes_the_same_plans_again() -> None:
    for seed in range(20):
        assert stream_plan(seed, MARKER) == stream_plan(seed, MARKER)
        assert client_plans(seed, 30, 10, 3) == client_plans(seed, 30, 10, 3)
        assert fault_plans(seed, 9, 10, 3, ["a", "b"], [1, 2]) == fault_plans(
            seed, 9, 10, 3, ["a", "b"], [1, 2]
        )
    assert client_plans(1, 30, 10, 3) != client_plans(2, 30, 10, 3)


def test_the_tokens_of_a_plan_are_those_of_its_text() -> None:
    for number in range(300):
        plan = stream_plan(3, f"n{number}.0")
        assert plan.tokens == tuple(count(plan.prefix(k)) for k in range(len(plan.chunks) + 1))
        assert all(plan.chunks_in(plan.prefix(k)) == k for k in range(len(plan.chunks) + 1))
