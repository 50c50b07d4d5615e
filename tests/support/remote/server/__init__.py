"""A loopback server that speaks the protocol of nnsight 0.8.1's remote client, and misbehaves when told to.

It is started under another name, in a virtual environment without this project
(tests/support/remote/isolation.py), so it imports nothing of it. What it does with a request is what NDIF does;
README.md says from where that is known.
"""
