"""From per-image scores to the rows of ``results.json``: the table of scores, pooling, decisions, the schema."""
