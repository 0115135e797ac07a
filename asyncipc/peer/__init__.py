"""Peers: from addresses, programs and streams to sessions."""
