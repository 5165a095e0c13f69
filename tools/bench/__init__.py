"""Benchmarks: `python -m tools.bench NAME`. A module NAME.py here with a click command NAME is one; see __main__."""
