//! warpo: training transformers from preferences with hand-written CUDA kernels.
//!
//! `model` calls `ops`, `ops` checks shapes and calls `device`, `device` launches. `train` knows `model`, `loss`,
//! `optim` and `data`; only `train` and `cli` read the run configuration.

pub mod cache;
#[cfg(feature = "cli")]
pub mod cli;
pub mod config;
pub mod data;
pub mod device;
pub mod error;
pub mod escape;
pub mod eval;
pub mod feed;
pub mod files;
pub mod forest;
pub mod loss;
pub mod model;
pub mod ops;
pub mod optim;
pub mod report;
pub mod rng;
pub mod roles;
pub mod stop;
pub mod train;
pub mod units;
pub mod versions;
