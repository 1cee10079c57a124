from __future__ import annotations

import socket

import pytest

from bnb_ds.distributed import ranks


def test_this_host_alone_needs_no_interface():
    assert ranks.interface_towards("127.0.0.1") is None
    assert ranks.interface_towards("no.such.host.invalid") is None


def test_the_interface_with_the_address_that_is_used():
    addresses = {name: ranks._address_of(name) for _, name in socket.if_nameindex()}
    others = {name: address for name, address in addresses.items() if address and not address.startswith("127.")}
    if not others:
        pytest.skip("this machine has no network")
    for name, address in others.items():
        assert ranks.interface_towards(address) == name
