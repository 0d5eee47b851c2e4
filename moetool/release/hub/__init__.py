"""A release from a hub of git repositories, ending in the same verification as one from a torrent.

address     hf:OWNER/NAME@REVISION, as a person writes it
listing     the files of a commit, judged before any of them exists here; what the hub says of them
door        the one importer of huggingface_hub: the listing, and the bytes of a file
fetch       address -> folder, every byte hashed
"""
