"""Restore MR, CT and natural images: denoise, super-resolve, deblur, dehaze with MaIR."""
