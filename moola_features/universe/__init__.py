"""Many instruments: which they are, what of them changed, building them, reading them as one."""
