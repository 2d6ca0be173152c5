"""One report model, and its renderers: failure block, terminal summary, JSON, JUnit properties, HTML."""
