//! Runs native plugins.
