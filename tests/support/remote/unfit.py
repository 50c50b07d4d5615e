"""Functions that would do something else on a server, or nothing."""

import pytest


def decorate(function):
    def wrapper(*arguments):
        return function(*arguments)

    wrapper.__wrapped__ = function
    return wrapper


@decorate
def decorated(model):
    return model.name


def with_nonlocal(model):
    count = 0

    def more():
        nonlocal count
        count += 1

    more()
    return count


class Parent:
    def name(self):
        return "parent"


class Child(Parent):
    def name(self):
        return super().name()


def importing(model):
    from posttrace.tracers.sites import get

    return get


def with_foreign_module(model):
    return pytest.approx(model)
