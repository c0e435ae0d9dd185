//! Kernel tests, one file per stem.

mod rmsnorm;
