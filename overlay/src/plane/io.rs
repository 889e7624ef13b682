//! Sockets, devices, and how threads are woken.

pub(super) mod device;
pub(super) mod moved_device;
pub(super) mod packet_socket;
pub(super) mod priority;
pub(super) mod second_port;
pub(super) mod tap_holder;
pub(super) mod udp;
pub(super) mod wake;
