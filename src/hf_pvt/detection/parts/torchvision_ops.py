"""torchvision's operators, which every detector needs and the rest of the package does not."""

from types import ModuleType

try:
    from torchvision import ops
except ImportError:  # without torchvision the package imports, and a detector says what it needs
    ops = None

torchvision_ops: ModuleType = ops


def require_torchvision(name: str) -> None:
    """Raise ImportError where `name` cannot work for want of torchvision."""
    if torchvision_ops is None:
        raise ImportError(
            f'{name} needs torchvision, which is not there; install it with pip install "hf_pvt[detection]".'
        )
