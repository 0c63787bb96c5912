"""``except ValueError`` around ``RejectMessage``, ``AckAndRestart`` or ``ExitScheduler``.

Gone: they are control flow, and derive from ``Exception``: name them in the clause.
"""

from postage import messaging, microthreads
from stage import note

note(issubclass(messaging.RejectMessage, ValueError))  # false
note(issubclass(messaging.AckAndRestart, ValueError))  # false
note(issubclass(microthreads.ExitScheduler, ValueError))  # false
