"""The durable output of a plan: whatever stops it leaves nothing under the final name.

run.py             the order of it all: what holds of an earlier run, what is new, what is kept
folder.py          OUT.partial, its lock, and one rename; room.py: the disk's free bytes
shard.py           one file, step by step; hashed_file.py: written, hashed and synced at once
lanes.py           the threads; read_back.py: what the disk gives back
checked_source.py  the source's CRC-32s, settled while its bytes pass
journal.py         what is done; identity.py: of which work
manifest.py        what the output is and was made of
"""
