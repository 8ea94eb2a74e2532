"""Torture: the real program on real sockets, under faults, for the figures of a release.

``python -m torture`` (or ``make torture``) runs the parts one after the other and prints a row for
each promise. To find the way:

- `__main__` reads the arguments and prints what `scorecard` has collected,
- `parts/` has a module for each part: what is done to the tunnel, and what must hold,
- `stage` sets up what a part plays on: memcacheds, the relay before them, the tunnel,
- `relay` is a process between the tunnel and its servers that delays, cuts and lies,
- `weather` draws which fault comes when, from the seed,
- `load` are clients that check every answer (`binary_load`, `text_load` speak the protocols), and
  `history` is what they know to be stored.
"""
