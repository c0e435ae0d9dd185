//! `warpo doctor`.

use std::process::ExitCode;

use anyhow::Result;

use crate::device::{Choice, Device, HostOptions};

#[derive(clap::Args)]
pub struct Args {}

pub fn run(_args: &Args) -> Result<ExitCode> {
    let device = Device::open(Choice::Auto, HostOptions::default())?;
    println!("device: {}", device.describe());
    Ok(ExitCode::SUCCESS)
}
