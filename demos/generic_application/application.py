"""An application that can be addressed, until a 'quit' message or Ctrl-C: python application.py NAME [GROUP ...]"""

import sys

from postage import messaging, microthreads
from postage.generic_application import GenericApplication


class Application(GenericApplication):
    @messaging.MessageHandler('command', 'say')
    def msg_say(self, content):
        print(content['parameters'])


name, *groups = sys.argv[1:] or ['monitor']
fingerprint = messaging.Fingerprint(name, 'application')

scheduler = microthreads.MicroScheduler()
application = Application(fingerprint, groups=groups)
scheduler.add_microthread(application)
print('Running as', application.uid)
scheduler.run(grace=10)
