"""BitTorrent: what a torrent says, and how to get what it names.

bencode   the encoding, and where in the text each value stands
metainfo  a torrent's file list, judged before any file exists; its pieces as claims
session   the peers of one torrent; libtorrent opened and given a torrent
download  the loop that waits for pieces
serve     a torrent served on this machine
create    a torrent file made of digests
layers, merkle   the trees of v2 torrents
profile   the settings of a session, each with its reason
alerts    what libtorrent says while it works
watch     when a download goes on, and when it must begin anew
order     in which order pieces are asked for, and why
doctor    why nothing comes, in one line, and what helps
web_seeds examined by ourselves
selection some files of a torrent, the others absent
"""
