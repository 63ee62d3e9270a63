"""Does the reasoning subspace carry the reward? A controlled experiment on one backbone and data set.

`plan` says what is compared, `reading` reads the answers once, `directions` names the subspaces,
`probes` fits a head on each of them out of fold, `verdict` says in words what the intervals allow,
`intervene` removes components of the state (`removal`, `removed_energy`) and looks at what changes
(`effects`), `tables` holds the figures.
"""
