//! What a run takes of a device before there is one: bytes by rung against vectors, the planner, and the command.

mod command;
mod planner;
mod rungs;

use warpo::{
    device::{Device, GemmBackend, HostOptions},
    model::{ModelConfig, released},
};

/// A device that plans as an H100 does.
fn hopper() -> Device {
    Device::host(HostOptions { hopper: true, gemm: GemmBackend::Kernel, ..HostOptions::default() }).unwrap()
}

fn shape(name: &str) -> ModelConfig {
    released::shape(name).unwrap().unwrap_or_else(|| panic!("no model {name}"))
}
