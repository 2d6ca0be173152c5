"""The explicit assertions: finite values, initial scale, data and pipelines."""
