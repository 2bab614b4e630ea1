"""The schema: the tables of the database, as the newest migration leaves them. Times are Unix seconds."""

import sqlalchemy as sa

from millstream.usage import SUMMED_KINDS, TOKEN_KINDS

REVISION = "0013"  # the newest migration

PAYER_LENGTH = 128  # of the id of whoever pays: a key, or a user of an application with a login of its own
RECORD_LENGTH = 64  # of a stream's id
# SQLite holds nobody to a length, and would write the whole table anew for another one.
_PAYER = sa.String(32).with_variant(sa.String(PAYER_LENGTH), "postgresql")

# Times that are dates of a calendar in every zone, and so are those of a day more: of 1970 to 9998.
EARLIEST, LATEST = 0.0, 253_370_764_799.0

metadata = sa.MetaData()

keys = sa.Table(
    "keys",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("name", sa.String(128), nullable=False),
    sa.Column("digest", sa.LargeBinary(32), nullable=False, unique=True),
    sa.Column("hint", sa.String(32), nullable=False),  # first and last characters, to recognise it by
    sa.Column("scopes", sa.String(64), nullable=False),  # separated by spaces
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("revoked_at", sa.Float, index=True),
    sa.Column("expires_at", sa.Float),
    sa.Column("last_used_at", sa.Float),  # written once a minute
    sa.Column("owner", sa.String(128)),  # whose it is, in the operator's words
    sa.Column("labels", sa.Text),  # as JSON, where there are any
    sa.Column("is_test", sa.Boolean, nullable=False, server_default=sa.false()),
)

# Secrets of keys that another one has replaced, for as long as both are good.
old_digests = sa.Table(
    "old_digests",
    metadata,
    sa.Column("digest", sa.LargeBinary(32), primary_key=True),
    sa.Column("key_id", sa.String(32), nullable=False, index=True),
    sa.Column("good_until", sa.Float, nullable=False),
)

# One row a worker, which raises ``beat`` as long as it lives. Another worker deletes a row whose beat stands
# still; so its streams are known to be orphans.
workers = sa.Table(
    "workers",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("beat", sa.BigInteger, nullable=False),
)

# What all workers of one installation sign with. The newest one whose time has come signs; every one is
# believed until it expires.
secrets = sa.Table(
    "secrets",
    metadata,
    sa.Column("name", sa.String(32), primary_key=True),  # "signing", and of those that came later "signing-…"
    sa.Column("value", sa.LargeBinary(64), nullable=False),
    sa.Column("signs_from", sa.Float, nullable=False),
    sa.Column("expires_at", sa.Float),  # null until another one replaces it
)

# One row a stream: what it is, what it used, where each number comes from. When it is settled or corrected,
# triggers add it to the sums below, in the same transaction, whoever does that (0007 and 0011). A migration
# that makes this table anew has to make them anew, too.
streams = sa.Table(
    "streams",
    metadata,
    sa.Column("id", sa.String(RECORD_LENGTH), primary_key=True),
    sa.Column("owner_id", sa.String(320), nullable=False),  # who may see it: a key, or an end user of it
    sa.Column("key_id", _PAYER, nullable=False),  # who pays for it
    sa.Column("token_id", sa.String(32)),  # the browser token that it was started with
    sa.Column("user", sa.String(256)),
    sa.Column("is_test", sa.Boolean, nullable=False, server_default=sa.false()),  # of a test key: not billed
    sa.Column("model", sa.String(256), nullable=False),
    sa.Column("provider", sa.String(64), nullable=False),  # who answers, or was asked last
    sa.Column("upstream_model", sa.String(256)),  # by its provider's name
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("finish_reason", sa.String(24)),
    sa.Column("error_code", sa.String(32)),
    # With a default, so that workers of the version before a new kind can go on in one database.
    *(sa.Column(kind, sa.BigInteger, nullable=False, server_default="0") for kind in TOKEN_KINDS),
    sa.Column("usage_source", sa.String(24), nullable=False),
    sa.Column("tokenizer", sa.String(32)),  # the vocabulary that we counted with, where we did
    # What it costs, and what is charged for it; null where that is not known. By which prices, as JSON.
    sa.Column("cost_picodollars", sa.BigInteger),
    sa.Column("price_picodollars", sa.BigInteger),
    sa.Column("unit_prices", sa.Text),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("called_at", sa.Float),  # when its first provider was asked
    sa.Column("first_event_at", sa.Float),
    sa.Column("ended_at", sa.Float),
    sa.Column("ended_by", sa.String(16)),
    sa.Column("corrected_at", sa.Float),  # when its producer's numbers replaced those of its last checkpoint
    # What its provider said of it, in its own words: how it ended, its usage object as JSON, its own price.
    sa.Column("provider_finish_reason", sa.String(64)),
    sa.Column("provider_usage", sa.Text),
    sa.Column("provider_cost_picodollars", sa.BigInteger),
    sa.Column("attempts", sa.Text),  # as JSON, where there were several
    sa.Column("worker_id", sa.String(32)),  # who runs it, then null
    sa.Column("idempotency_key", sa.String(128)),
    sa.Column("request_digest", sa.LargeBinary(32)),  # of the request, where it has an idempotency key
    sa.Column("thread_id", sa.String(128)),  # the conversation that it belongs to, as its client names it
    sa.Column("held", sa.Text),  # what it has reserved, and in which counters: as JSON, where limits apply
    sa.Index("streams_by_key", "key_id", "created_at"),
    sa.Index("streams_by_time", "created_at"),
    sa.Index("streams_running", "worker_id"),
    sa.Index(
        "streams_open_by_owner",
        "owner_id",
        sqlite_where=sa.text("worker_id IS NOT NULL"),
        postgresql_where=sa.text("worker_id IS NOT NULL"),
    ),
    sa.Index(
        "streams_by_idempotency_key",
        "owner_id",
        "idempotency_key",
        unique=True,
        sqlite_where=sa.text("idempotency_key IS NOT NULL"),
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    ),
    sa.Index(
        "streams_by_thread",
        "owner_id",
        "thread_id",
        "created_at",
        sqlite_where=sa.text("thread_id IS NOT NULL"),
        postgresql_where=sa.text("thread_id IS NOT NULL"),
    ),
)

# What a key and its end users may use. A row is a limit (``limits.Limit``).
key_limits = sa.Table(
    "key_limits",
    metadata,
    sa.Column("key_id", sa.String(32), primary_key=True),
    sa.Column("what", sa.String(16), primary_key=True),
    sa.Column("per", sa.String(16), primary_key=True),
    sa.Column("model", sa.String(256), primary_key=True),  # "" for all
    sa.Column("each_user", sa.Boolean, primary_key=True),
    sa.Column("amount", sa.BigInteger, nullable=False),
)

# One row a window of a limit. ``used`` and ``reserved`` together are what the limit is held against.
counters = sa.Table(
    "counters",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("ends_at", sa.BigInteger),  # null where the window has no end
    sa.Column("used", sa.BigInteger, nullable=False),
    sa.Column("reserved", sa.BigInteger, nullable=False),
)

# Until when the first event came, in seconds: the bounds of the buckets that streams are counted in. The last
# bucket, one more, has those after all of them.
FIRST_EVENT_SECONDS = (
    *(0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7),
    *(1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 60.0),
)
FIRST_EVENTS = tuple(f"first_event_{number}" for number in range(len(FIRST_EVENT_SECONDS) + 1))
SUMS = (
    "streams",
    "cancelled",
    "failed",  # or interrupted
    "estimated",  # whose provider has not said the last word on its tokens
    "uncosted",  # without a known cost
    "unpriced",  # and without a known price
    *SUMMED_KINDS,
    "cost_picodollars",
    "price_picodollars",
    *FIRST_EVENTS,
)


def _sums(name: str, **of_whom: sa.String) -> sa.Table:
    """Sums over the settled streams that were created in one hour, counted from 1970 in UTC.

    Of what is the same there may be several rows, by ``shard``: on PostgreSQL connections write rows of their
    own, so that no worker waits for another's transaction.
    """
    columns = [sa.Column(column, kind, primary_key=True) for column, kind in of_whom.items()]
    return sa.Table(
        name,
        metadata,
        sa.Column("hour", sa.Integer, primary_key=True, autoincrement=False),
        *columns,
        sa.Column("model", sa.String(256), primary_key=True),
        sa.Column("provider", sa.String(64), primary_key=True),
        sa.Column("is_test", sa.Boolean, primary_key=True),
        sa.Column("shard", sa.SmallInteger, primary_key=True, autoincrement=False),
        *(sa.Column(column, sa.BigInteger, nullable=False) for column in SUMS),
        *([sa.Index(f"{name}_by_key", "key_id", "hour")] if of_whom else []),
        sqlite_with_rowid=False,
    )


# Three times, from few rows to many: a report reads no more than it has to.
hours = _sums("hours")
key_hours = _sums("key_hours", key_id=_PAYER)
user_hours = _sums("user_hours", key_id=_PAYER, user=sa.String(256))  # an empty user is none

# What is on its way to an exporter: a row that is written with the settlement, and deleted when it is
# delivered.
exports = sa.Table(
    "exports",
    metadata,
    sa.Column("exporter", sa.String(32), primary_key=True),
    sa.Column("stream_id", sa.String(64), primary_key=True),
    sa.Column("is_correction", sa.Boolean, primary_key=True),
    sa.Column("settled_at", sa.Float, nullable=False),
    sa.Column("due_at", sa.Float),  # null where the receiver refused it: it waits for an operator
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("sent_at", sa.Float),  # since when it may have arrived, though no answer said so
    sa.Column("last_error", sa.String(256)),
    sa.Column("replaced", sa.Text),  # as JSON: the numbers of the stream before its correction
    sa.Index("exports_due", "exporter", "due_at"),
)

# Since when an exporter has been there, in Unix seconds: what was settled earlier is not sent.
exporters = sa.Table(
    "exporters",
    metadata,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("since", sa.Float, nullable=False),
)

# What an exporter has delivered of the streams that were created in one hour, since it has been there.
DELIVERED = ("streams", *SUMMED_KINDS, "cost_picodollars", "price_picodollars")
delivered = sa.Table(
    "delivered",
    metadata,
    sa.Column("exporter", sa.String(32), primary_key=True),
    sa.Column("hour", sa.Integer, primary_key=True, autoincrement=False),
    *(sa.Column(name, sa.BigInteger, nullable=False) for name in DELIVERED),
)
