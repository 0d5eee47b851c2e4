"""Is it the same model, and if not, where does it differ?

    canonical     any checkpoint seen as raw Mistral tensors, whatever holds it
    narrow        values in the narrowest type that holds them, so that widening changes nothing
    merkle        many digests -> one root
    identity      canonical values -> a digest for each tensor -> the root
    locate        a range of bytes -> tensor, layer, expert, matrix, rows

Everything but `locate` reads weights; nothing here writes them.
"""
