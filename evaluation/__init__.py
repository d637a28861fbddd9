"""The paper's benchmarks: prompts, parsers, official scorers, judges, a runner and its report."""
