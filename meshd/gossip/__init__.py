"""Membership, failure detection and dissemination: SWIM with Lifeguard, node state, load."""
