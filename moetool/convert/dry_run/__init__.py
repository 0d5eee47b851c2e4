"""What a conversion would do, before it does it.

outlook.py     the report: steps by layer, bytes, room, peak memory, time
unfinished.py  a source that is not complete yet: what it will be
probe.py       half a second of reading, hashing and writing, for the time
"""
