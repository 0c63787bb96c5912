"""``postage run``: components as processes under a supervisor.

``command.py``
    the command itself
``options.py``
    what it is told, by options, variables and ``pyproject.toml``
``supervisor.py``, ``process.py``
    the supervisor: what a worker process is at, and what is done when it ends or is to be replaced
``worker.py``
    what runs in a worker
``line.py``
    what the two say to each other
``reload.py``
    what watches the sources
``logs.py``, ``message_fields.py``
    how all of them log
"""
