"""The models: translation of names, digits, disease progression."""
