"""The values of a fingerprint are text, whatever is given, and any attribute may be set."""

from postage import messaging
from stage import note, raised


class Place(messaging.Fingerprint):
    def as_dict(self):
        return {**super().as_dict(), 'room': self.room}


fingerprint = Place(5, 6, 7, 8, 9, 10)
fingerprint.room = 'attic'
note(fingerprint.as_dict())
note(fingerprint.as_tuple())
note(messaging.Fingerprint(name='app', type='kind', pid=1, host='h', user='u', vhost='v').as_dict())
note(raised(lambda: sorted(messaging.Fingerprint().as_dict())))
