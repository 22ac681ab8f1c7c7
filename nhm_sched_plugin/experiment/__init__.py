"""Is the policy worth following? What the records say: off-policy estimates, comparisons of arms, the shadow report.

Batch code, never imported by a host. Needs numpy and scipy (the `training` extra) and, to read the records, `store`.
"""
