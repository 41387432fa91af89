"""Studies: arms that branch from one warm-up per block, measured alike and compared within blocks."""
