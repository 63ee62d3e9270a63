"""From a stream of hidden states to the few numbers a head reads: recipe, subspace, reduce, read."""
