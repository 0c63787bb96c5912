"""How long it takes to import Postage once pika is there.

Apart from the other roles, and with next to no imports of its own: what it had imported would not be counted.
"""

import sys
import time

import pika  # noqa: F401

sys.stdout.write('ready\n')
sys.stdout.flush()
sys.stdin.readline()
cpu, began = time.process_time(), time.perf_counter()
from postage import messaging  # noqa: E402, F401

seconds = time.perf_counter() - began
sys.stdout.write(f'{{"seconds": {seconds}, "cpu": {time.process_time() - cpu}, "messages": 1}}\n')
