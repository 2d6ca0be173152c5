"""The names of the initialisation schemes, known without torch."""

NAMES = (
    "xavier_uniform",
    "xavier_normal",
    "kaiming_uniform",
    "kaiming_normal",
    "lecun_uniform",
    "lecun_normal",
    "orthogonal",
    "normal",
    "trunc_normal",
    "uniform",
    "zeros",
    "torch_default",
)


def name_of(text: str) -> str:
    """The name in "kaiming_normal(fan_out)" or "kaiming_normal_", known or not."""
    return text.partition("(")[0].strip().removesuffix("_")
