"""Does the reasoning subspace carry the reward? A controlled experiment on one backbone and data set.

    plan, intervention_plan                what is compared, what is removed; `settings` is their base
    supervision                            the answers' labels or pairs, and the metric of record
    reading, energy                        the answers read once; where their states lie
    directions                             subspaces and other feature sets, by name
    probes                                 a head on each of them, out of fold
    measure, draws                         its figures, contrasts between heads, and against random ones
    grid, controls, descriptions           everything that is compared, or described, stage by stage
    removal, removed_energy                components of the state taken out while the model works
    intervention_work, intervene, effects  what that takes, how it is done, what it changes
    run, folder, estimate                  the whole audit, what it leaves behind, what it will take
    tables                                 every figure of an audit
    rules, words                           what allows a claim; what figures are called
    verdict, explored, use                 what the intervals allow, in words

The last rows, and the reports, read the tables and nothing else.
"""
