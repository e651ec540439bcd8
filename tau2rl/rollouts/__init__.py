"""Episodes: the loop, how many at once, in what order, in which processes."""
