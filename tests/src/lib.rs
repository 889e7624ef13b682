//! The emulated wide area, end-to-end suites and simulations.
