//! Decides: load gossip, score, negotiation, hysteresis. Does no IO.
