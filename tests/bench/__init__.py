"""Speed of the library beside a named peer, in one run: medians and ratios."""
