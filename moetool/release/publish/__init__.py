"""A folder given to others: its list of digests, its torrent, and the serving of it.

run       folder -> RELEASE, .torrent and magnet
files     which files are published, and what is refused
listing   the text of RELEASE
forms     hybrid and v1: which digests they need, and what is made of these
taken     digests taken while the files were written, which need no reading
seeding   the folder served to the swarm
"""
