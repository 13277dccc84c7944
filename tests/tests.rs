//! The table of contents of the tests.
