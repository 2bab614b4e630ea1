"""The official clients of other formats, each in an environment of its own, against a running server.

``python/<client>`` and ``node/<client>.mjs`` each have a client: a program that reads requests as lines of
JSON and answers each with what its user would see (``python/driver.py``, ``node/driver.mjs``). What every
client has to show is in ``test_clients.py``, what a client cannot is in ``clients.py``.
"""
