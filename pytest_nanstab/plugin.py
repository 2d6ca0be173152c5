"""The pytest hooks. Standard library and pytest only: nothing here may import torch, numpy or hypothesis."""
