"""One module a peer, wired as its documentation shows it with a token store.

Each has ``TITLE`` and ``PACKAGE`` (as the table and the package index call it), ``connect`` (a context manager around a
client of one member, made from the store; it gives a function that makes one call to the API and returns the status),
``seed`` and ``expire`` (the row as a program finds it: filled, or an hour later).
"""
