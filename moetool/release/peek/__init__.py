"""A release looked into before it is downloaded: headers, and nothing else, from where it is.

torrent   pieces of a torrent, fetched as bytes of them are read
https     a file behind https://, by ranges: the one door to servers
address   which servers may be asked
"""
