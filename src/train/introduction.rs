//! What a run says before it takes time.

use anyhow::Result;

use super::{
    inputs::Inputs,
    unused::{self, Facts},
};
use crate::{
    config::Config,
    data::{Report, batches},
    device::Device,
    report::terminal::{Talk, say, talks},
    roles::Decision,
};

/// Says what is about to happen, and which settings have no effect.
///
/// # Errors
/// The configuration cannot be written as TOML.
pub fn introduce(config: &Config, inputs: &Inputs, device: &Device, found: &Decision, precision: &str) -> Result<()> {
    say(&format!("device: {}", device.describe()));
    say(precision);
    if talks(Talk::Verbose) {
        config.to_toml()?.lines().filter(|line| !line.is_empty()).for_each(say);
    }
    // What the host has free is other programs' as well.
    let table = if device.is_cuda() { found.to_string() } else { found.without_limit() };
    table.lines().for_each(say);
    let eval = inputs.eval.as_ref().map_or(0, |eval| eval.trees.len());
    say(&format!("loss: {}", inputs.loss.names()));
    say(&format!("data: {} rows to train on, {eval} held out", inputs.train.rows()));
    for skipped in inputs.train.skipped.iter().chain(inputs.eval.iter().flat_map(|eval| &eval.skipped)) {
        say(&format!("left out: {skipped}"));
    }
    inputs.origins.iter().for_each(|origin| say(origin));
    for (what, data) in [("training", Some(&inputs.train)), ("held-out", inputs.eval.as_ref())] {
        let report = data.map(|data| data.report).unwrap_or_default();
        report.documents().into_iter().for_each(|documents| say(&format!("{what}: {documents}")));
        let Report { prompts_cut, responses_cut, rows_dropped, .. } = report;
        if prompts_cut + responses_cut + rows_dropped > 0 {
            say(&format!(
                "long {what} rows: {prompts_cut} prompts cut, {responses_cut} responses cut, {rows_dropped} rows dropped"
            ));
        }
    }
    let packing = batches::packing(&inputs.train.trees, &inputs.loader)?;
    say(&packing.describe(config.step_size()));
    let facts = Facts { config, loss: &inputs.loss, total_steps: inputs.total_steps, device: Some(device) };
    unused::notes(&facts)?.iter().for_each(|note| say(note));
    Ok(())
}
