"""A conversion of what is still being fetched: the same code, over files whose reading waits.

reads      which bytes each step reads, the order in which pieces are wanted, what may go
companion  the conversion in a thread beside the download
fetch      the fetch that it goes with: the raw files stay, or go piece by piece
"""
