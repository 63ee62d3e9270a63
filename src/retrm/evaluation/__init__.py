"""How good a scorer is: figures with intervals, beside the baselines nobody should lose to."""
