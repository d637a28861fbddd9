"""Scripts that build Hub-layout Parquet repositories; `datasets.load_dataset` then needs no code."""
