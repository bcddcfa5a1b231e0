"""What the bytes are: numbers, grammars, layouts. Pure: no I/O, no policy."""
