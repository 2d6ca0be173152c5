"""The data sets, all of them shipped with babel and scikit-learn: nothing is downloaded."""
