"""Proof of Quality: consensus, trust, attacks and rewards in decentralized LLM inference, simulated on score logs."""

__version__ = "0.1.0"
