"""Data pipelines as people write them: pairs of a broken one and its mended twin, and sound ones that look dangerous.

Every file has `sample()`, `build`, `POLICY` and `KWARGS` for the assertion. `build(fixed)` of a pair gives either twin,
and `CULPRIT` is a piece of the line that is to be named. `HOLDS`: the pipeline is a data set that holds the sample.
"""
