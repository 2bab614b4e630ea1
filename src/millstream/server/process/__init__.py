"""The process of ``millstream serve``: its socket, its workers, its memory."""
