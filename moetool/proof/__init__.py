"""Is it the same model, and where exactly is it not?"""
