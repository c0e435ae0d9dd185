//! warpo: training transformers from preferences with hand-written CUDA kernels, on NVIDIA GPUs and, slowly, on any CPU.
//!
//! Two ways in. A run, as the command line does it: a TOML file with defaults, a device, a folder.
//!
//! ```
//! use warpo::{Stop, config::Config, device::Choice, train};
//!
//! let set = ["train.steps=2", "train.eval_every=0", "cache.dir=off"].map(String::from);
//! let config = Config::load("examples/quickstart.toml".as_ref(), &set)?;
//! let folder = tempfile::tempdir().unwrap();
//! let options = train::Options { config, device: Choice::Host, out: folder.path().join("run"), resume: false, overwrite: false };
//! train::run(&options, &Stop::default())?;
//! assert!(folder.path().join("run/final/model.safetensors").is_file());
//! # Ok::<(), warpo::Error>(())
//! ```
//!
//! Or the model alone, and a loss of one's own: all that a loss is to the engine is a slope for every log-probability.
//!
//! ```
//! use warpo::{
//!     Device, Error, Forest, Model, Tree,
//!     device::{DType, HostOptions},
//!     model::{Capacity, MemoryPlan, ModelConfig, Slopes},
//! };
//!
//! let device = Device::host(HostOptions::default())?;
//! let config = ModelConfig::load("examples/quickstart-model".as_ref())?;
//! // Prompt, chosen and rejected response: the prompt is computed once.
//! let forest = Forest::pack([&Tree::pair("a row", vec![5, 17, 23], vec![9, 31], vec![40, 41, 42])])?;
//! let capacity = Capacity { tokens: forest.len(), rows: forest.rows(), head_chunk_rows: 64 };
//! let model = Model::<f32>::new(&device, &config, MemoryPlan::new(&config, DType::F32, capacity)?)?;
//! model.randomize(1)?;
//!
//! let batch = model.upload(&forest)?;
//! model.forward(&batch)?;
//! let logps = device.download(&model.logps(&batch)?)?;
//! // d loss / d log-probability of each row, here of -sum log p(chosen) + sum p(rejected).
//! let chosen = forest.sequence_rows[1] as usize;
//! let slopes: Vec<f32> = logps.iter().enumerate().map(|(row, logp)| if row < chosen { -1.0 } else { logp.exp() }).collect();
//! model.backward(&batch, &Slopes::by_logps(&device.upload(&slopes)?))?;
//! let gradients = device.download(model.params().grads())?;
//! assert!(gradients.iter().any(|&g| g != 0.0));
//! # Ok::<(), Error>(())
//! ```
//!
//! `examples/own_loss.rs` trains with it; `examples/score.rs` reads a data file and scores it. `warpo losses` lists the 61 losses
//! that are there already.
//!
//! # Rooms
//!
//! Each may know those after it: [`cli`]; `bench`; [`train`], [`eval`]; [`feed`] (where a step's rows come from); [`roles`] (policy and
//! reference); [`loss`], [`optim`]; [`model`]; [`ops`], which check shapes; [`device`], which launches. [`data`] makes token
//! trees of files and knows no model. [`config`] knows every room's options, and only [`train`], [`eval`] and [`cli`] know it;
//! [`report`] is what people are told. `tests/build/house.rs` has the table.

#![deny(missing_docs)]

#[cfg(feature = "bench")]
pub mod bench;
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
mod spelling;
pub mod stop;
pub mod train;
pub mod units;
pub mod versions;

pub use device::Device;
pub use error::Error;
pub use forest::{Forest, Tree};
pub use loss::Loss;
pub use model::Model;
pub use stop::Stop;
