//! The one integration binary: oracles in f64, kernels on every device there is, model, training, command line.

mod build;
mod cli;
mod cuda;
mod data;
mod device;
mod files;
mod formats;
mod fuzz;
mod loss;
mod model;
mod ops;
mod optim;
mod oracles;
mod plan;
mod real_sizes;
mod support;
mod train;
