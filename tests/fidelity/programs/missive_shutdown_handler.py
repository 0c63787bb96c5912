"""Missive: ``ShutdownHandler(callback=…)``, ``enable()``, ``set_flag()``, ``wait_for_flag()``, ``should_exit()``."""

import os
import signal
import threading

from postage.missive.shutdown_handler import ShutdownHandler
from stage import note

handler = ShutdownHandler(callback=lambda number: note('callback', number))
note(handler.should_exit())
handler.enable()
threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGTERM]).start()
handler.wait_for_flag()
note(handler.should_exit())
other = ShutdownHandler()
threading.Timer(0.2, other.set_flag).start()
other.wait_for_flag()
note(other.should_exit())
