"""Data pipelines under corrupted data: how data gets in, what comes out, what is kept, and whose line it was."""
