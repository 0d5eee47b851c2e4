"""Claims on byte ranges, settled in one read, without a word about formats.

settle      claims -> report: MATCH, MISMATCH, NOT COVERED, UNREADABLE
hashing     files in parallel, digests in threads, each byte read once
digests     the algorithms, by name
coverage    which bytes are covered, and which ranges are suspect
references  which claims there are for a release, and what they prove
subject     what a path given to `verify` is
"""
