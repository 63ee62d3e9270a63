"""Everything that judges an answer is a `Scorer`: answers in, one raw score each out."""
