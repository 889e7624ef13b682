//! Addresses and names out of the DHT, and the answers on a guest's port.
