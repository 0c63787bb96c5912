"""Stores for messages that a processor could not handle. Any mutable mapping is one; this one outlives the program.

``sqlite.SQLiteDLQ``
    the SQLite store of :mod:`postage.dead_letters`, as a mapping
"""
