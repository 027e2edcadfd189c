"""How a batch runs: without padding, in pieces, in 8 bits."""
