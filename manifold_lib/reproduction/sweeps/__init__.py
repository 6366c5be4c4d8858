"""``make sweep``: notebooks over sets and network seeds on Dask, and what the units found together."""
