"""Records: what was said, seen and found during a run. The checker reads nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from nemesis.plans import ClientPlan, SetUp, StreamPlan

Position: TypeAlias = tuple[int, int]
Row: TypeAlias = Mapping[str, Any]


@dataclass
class Asked:
    """A request that reached the provider. All times are of the harness's monotonic clock."""

    plan: StreamPlan
    arrived_at: float
    said_at: list[float] = field(default_factory=list)  # one for each chunk, before it was written
    finished: bool = False  # everything that was planned is written, but for a silence, which has no end
    ended_at: float | None = None  # of the answer
    closed_at: float | None = None  # of the socket; None while it waits for another request

    @property
    def marker(self) -> str:
        return self.plan.marker

    @property
    def said(self) -> int:
        """Chunks that were put on the wire."""
        return len(self.said_at)

    @property
    def text(self) -> str:
        return self.plan.prefix(self.said)

    @property
    def over_at(self) -> float | None:
        """When the provider had no more to do with it."""
        return self.ended_at if self.finished else self.closed_at


@dataclass
class Frame:
    position: Position
    at: float
    text: str = ""
    end: Mapping[str, Any] | None = None  # of a terminal frame, all of it
    id: str = ""  # as it was sent: behind the position a ticket's reader gets a proof that it was there


@dataclass
class Connection:
    """One connection of a client. ``how`` it ended: whole, cut, left, broken, refused, empty."""

    worker: int
    at: float
    follows: bool = False
    after: Position | None = None
    status: int | None = None
    code: str | None = None  # of an error body
    how: str = "broken"
    ended_at: float | None = None
    frames: int = 0


@dataclass
class Cancel:
    worker: int
    at: float
    answered_at: float | None = None
    status: int | None = None


@dataclass
class Client:
    """What one client has seen of one stream. ``marker`` is the one of its last start."""

    plan: ClientPlan
    marker: str = ""
    stream_id: str | None = None
    key: str | None = None  # of idempotency
    started_at: float = 0.0
    frames: list[Frame] = field(default_factory=list)
    connections: list[Connection] = field(default_factory=list)
    cancels: list[Cancel] = field(default_factory=list)
    after_end: list[str] = field(default_factory=list)  # what came after the end, which nothing may
    malformed: list[str] = field(default_factory=list)
    whole: Mapping[str, Any] | None = None
    outcome: str = "open"  # ended, left, gone, refused, unstarted, lost, no-stream
    done_at: float | None = None

    @property
    def text(self) -> str:
        if self.whole is not None:
            return str(self.whole.get("content", ""))
        return "".join(frame.text for frame in self.frames)

    @property
    def end(self) -> Mapping[str, Any] | None:
        return next((frame.end for frame in self.frames if frame.end is not None), self.whole)


@dataclass
class Probe:
    """A request whose answer is known before: somebody else's stream, junk, readiness."""

    what: str
    worker: int
    at: float
    status: int | None
    body: str = ""
    stream_id: str | None = None
    ended_at: float = 0.0


@dataclass
class Fault:
    """``touches`` is what it lies on: worker:0 ..., log, database, machine."""

    name: str
    touches: frozenset[str]
    began_at: float
    ended_at: float = 0.0
    note: str = ""


@dataclass
class Sample:
    """What a worker has at a moment."""

    worker: int
    pid: int
    at: float
    rss: int
    descriptors: int
    threads: int
    kinds: str = ""  # of its descriptors, where they are looked at


@dataclass
class Exit:
    """A worker's process has ended. ``expected`` where the harness has ended it."""

    worker: int
    at: float
    code: int
    expected: bool
    what: str = ""
    run: str = ""  # the name of its log


@dataclass
class Evidence:
    """All that a run has found."""

    seed: int = 0
    set_up: SetUp = "single"
    began_at: float = 0.0
    calm_at: float = 0.0  # when the last fault had ended
    asked: list[Asked] = field(default_factory=list)
    clients: list[Client] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    changes: list[Row] = field(default_factory=list)  # of rows' endings, in order
    receipts: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    seen_running_at: dict[str, float] = field(default_factory=dict)  # the last time
    seen_settled_at: dict[str, float] = field(default_factory=dict)  # the first time
    logs: dict[str, str] = field(default_factory=dict)
    bodies: list[str] = field(default_factory=list)  # of errors that clients got
    secrets: dict[str, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    before: list[Sample] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    after: list[Sample] = field(default_factory=list)
    left_open: int = 0  # sockets at the provider, at the end
    redis_keys: dict[str, int] = field(default_factory=dict)  # seconds to live
    redis_connections: tuple[int, int] = (0, 0)  # before and after
    probes: list[Probe] = field(default_factory=list)
    exits: list[Exit] = field(default_factory=list)
    harness_lag: list[tuple[float, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Violation:
    invariant: str
    stream: str
    what: str

    def __str__(self) -> str:
        return f"{self.invariant}  {self.stream or '-'}  {self.what}"
