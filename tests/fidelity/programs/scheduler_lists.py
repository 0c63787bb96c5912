"""``scheduler.active_microthreads`` and ``scheduled_microthreads``, the lists of generators.

Gone: ``scheduler.microthreads`` has the microthreads themselves, those that have not ended.
"""

from postage import microthreads
from stage import note

scheduler = microthreads.MicroScheduler()
scheduler.add_microthread(microthreads.MicroThread())
note(hasattr(scheduler, 'active_microthreads'))  # false
note(len(scheduler.microthreads) if hasattr(scheduler, 'microthreads') else None)  # 1
