"""Spoil a result, so that a client that trusts it blindly would store something wrong."""


def spoil(saved: dict, how: str) -> dict:
    """A copy of the saved values with one thing wrong in the largest float tensor of them."""
    import torch

    found = sorted(
        (value.numel(), path)
        for path, value in _leaves(saved)
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel()
    )
    _, path = found[-1]
    changes = {
        "shape": lambda value: value.reshape(-1)[:-1].clone(),
        "dtype": lambda value: value.double() if value.dtype != torch.double else value.float(),
        "nan": lambda value: _with(value, float("nan")),
        "flip": lambda value: _with(value, value.reshape(-1)[0] * 2 + 1),
    }
    if how == "missing":
        return _without(saved, path)
    if how == "extra":
        return {**saved, "unasked": torch.zeros(1)}
    return _replaced(saved, path, changes[how])


def flip_byte(data: bytes) -> bytes:
    """The bytes of a result with one bit of the middle one changed."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def _leaves(value, path=()):
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, (*path, name))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _leaves(inner, (*path, index))
    else:
        yield path, value


def _replaced(value, path, change):
    if not path:
        return change(value)
    key, *rest = path
    if isinstance(value, dict):
        return {
            name: _replaced(inner, rest, change) if name == key else inner for name, inner in value.items()
        }
    return type(value)(_replaced(inner, rest, change) if i == key else inner for i, inner in enumerate(value))


def _without(value, path):
    key, *rest = path
    if rest:
        return _replaced(value, (key,), lambda inner: _without(inner, rest))
    if isinstance(value, dict):
        return {name: inner for name, inner in value.items() if name != key}
    return type(value)(inner for i, inner in enumerate(value) if i != key)


def _with(value, number):
    value = value.clone()
    value.view(-1)[0] = number
    return value
