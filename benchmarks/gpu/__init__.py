"""Everything that is to be known of one GPU, in nine minutes: `python -m benchmarks.gpu`."""
