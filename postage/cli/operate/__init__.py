"""The commands that ask components, and command them, over the broker.

``asking.py``
    how components are asked, and their answers gathered
``options.py``
    what the commands have in common
``ps.py``, ``describe.py``, ``commands.py``, ``stacks.py``, ``top.py``
    on :class:`messaging.ControlExchange`
``call.py``, ``tail.py``, ``replay.py``
    on exchanges of the program
``recording.py``
    messages as lines of a file
``topology.py``
    what a program declares
"""
