"""Process rewards (ViLBench): candidate pools, scorers of steps, aggregators, best-of-N."""
