"""What comes of reading something that has another shape than it should: any program may send, or write, that."""

from __future__ import annotations

from postage.errors import DecodingError

MALFORMED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, DecodingError)
