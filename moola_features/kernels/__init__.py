"""Plain loops over 1-D arrays, compiled by Numba; they know no files, configurations or errors."""
