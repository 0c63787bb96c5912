"""``messaging.microthreads`` is the module of microthreads."""

from postage import messaging, microthreads
from stage import note

note(messaging.microthreads.ExitScheduler is microthreads.ExitScheduler)
