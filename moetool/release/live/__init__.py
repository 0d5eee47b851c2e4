"""A download that is read while it comes: no byte is given out before its piece was hashed by us.

arrivals   which pieces are here, which are asked for, and in what order; files that wait
headers    what is wanted first: small files whole, of others the ends
download   the pieces into a folder, each hashed where it lies
streams    digests of whole files, taken behind the pieces
taking     both together: a download of which little is left to read
holes      verified bytes that nobody needs any more, given back to the disk
proof      what is known of files of which holes are left
"""
