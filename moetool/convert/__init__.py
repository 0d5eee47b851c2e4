"""From one convention and format to another: plans derived from tables, then streamed."""
