"""The mean of the weights of models that were trained from the same start (Model soups, arXiv 2203.05482)."""

from torch import Tensor


def mean_of_weights(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of state dictionaries of one architecture, summed in float64, in their own data types."""
    return {
        name: (sum(state[name].double() for state in states) / len(states)).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in states[0].items()
    }
