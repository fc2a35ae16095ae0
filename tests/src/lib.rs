//! The service as a black box against real servers.
