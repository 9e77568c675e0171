"""Side-by-side measurements, each run as `python -m benchmarks.NAME`: a table on the screen, the same numbers with `--json FILE`."""
