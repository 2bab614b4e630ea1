"""Streams: what a worker runs, and who reads it.

``registry`` starts, finds and ends streams. ``producer`` runs one, ``audience`` knows its readers, ``parts``
and ``tally`` keep what it has said and used. ``upkeep`` does what happens by the clock.
"""
