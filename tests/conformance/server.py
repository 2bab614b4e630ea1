"""``millstream serve`` with pings after a fifth of a second, so that a silence need not be long."""

from millstream.cli import main
from millstream.server.streaming import event_stream

event_stream.PING_SECONDS = 0.2
event_stream.LOOK_SECONDS = 0.1
event_stream.HOLD_SECONDS = 0.2

main()
