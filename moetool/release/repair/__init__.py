"""Bad pieces of a release, replaced in place, and nothing else written.

run         look, lock, take from a copy, take from the swarm
subject     what the files should be, and which files of a copy stand for them
mend        right pieces in the place of wrong ones: hash, write, sync, read back
report      what was found and done
"""
