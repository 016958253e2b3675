"""Peers: other people's libraries on the same rounds, installed for the comparison only."""
