"""What legal batches look like, how to build nasty ones, and how to corrupt a sample."""
