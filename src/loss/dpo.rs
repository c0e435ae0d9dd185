//! Direct preference optimisation, with label smoothing and a likelihood term on the chosen response.
//!
//! For a pair with chosen response w and rejected response l, policy log-probabilities `logps` (summed over the
//! response's tokens), reference log-probabilities `ref_logps` and `rho = logps - ref_logps`:
//!
//! ```text
//! u    = beta * (rho_w - rho_l)                                  the margin
//! loss = weight * mean over pairs [(1 - e) * sp(-u) + e * sp(u)]   sp(x) = log(1 + exp x), e = label_smoothing
//!      + sft_weight * sum over pairs (-logps_w) / sum over pairs (tokens of w)
//!
//! d loss / d logps_w = weight / pairs * beta * (e * sig(u) - (1 - e) * sig(-u)) - sft_weight / tokens
//! d loss / d logps_l = minus the first of the two terms
//! ```
//!
//! and every token of a response has the slope of its response. Means are those of the whole step.
//!
//! * `e = 0`: DPO, arXiv 2305.18290 (Rafailov et al.). At the reference the loss is ln 2.
//! * `e > 0`: conservative DPO (E. Mitchell, "A note on DPO with noisy preferences & relationship to IPO", 2023): labels
//!   are taken to be wrong with probability `e`; the loss is least at `u = ln((1 - e) / e)`.
//! * `sft_weight > 0`: the likelihood term of arXiv 2404.19733 (iterative reasoning preference optimisation) and
//!   2405.16436, here normalised by the chosen tokens of the whole step: the batch-token mean of TRL's `sft` loss
//!   type, not the mean per response of the first paper nor the sum of the second.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::{MetricSums, Rows, Totals};
use crate::{
    device::{Buffer, Device},
    ops::preference_loss::{self, Params},
};

/// Columns of the head's statistics, as [`Dpo::run`] leaves them.
pub const STATS: usize = preference_loss::STATS;

/// Options of the loss.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dpo {
    /// Strength of the pull towards the reference, above 0 (arXiv 2305.18290 uses 0.1 to 0.5).
    pub beta: f64,
    /// Probability that a label is wrong, 0 to below 0.5.
    pub label_smoothing: f64,
    /// Weight of the chosen response's mean negative log-likelihood per token, 0 or more.
    pub sft_weight: f64,
    /// Weight of the preference term, 0 or more.
    pub weight: f64,
}

impl Default for Dpo {
    fn default() -> Self {
        Self { beta: 0.1, label_smoothing: 0.0, sft_weight: 0.0, weight: 1.0 }
    }
}

impl Dpo {
    /// Checks the ranges.
    ///
    /// # Errors
    /// Names the option, its value and what is allowed.
    pub fn validate(&self) -> Result<()> {
        let Self { beta, label_smoothing, sft_weight, weight } = *self;
        ensure!(beta > 0.0 && beta.is_finite(), "`beta` = {beta}: expected a number above 0");
        let smoothing_fits = (0.0..0.5).contains(&label_smoothing);
        ensure!(smoothing_fits, "`label_smoothing` = {label_smoothing}: expected 0 or more and less than 0.5");
        for (name, value) in [("sft_weight", sft_weight), ("weight", weight)] {
            ensure!(value >= 0.0 && value.is_finite(), "`{name}` = {value}: expected a number of 0 or more");
        }
        ensure!(sft_weight > 0.0 || weight > 0.0, "`weight` and `sft_weight` are both 0: there is nothing to train");
        Ok(())
    }

    /// Runs the head on one micro-batch of a step with these totals: writes `coefficients` (rows) = d loss / d logp
    /// and `stats` (pairs, [`STATS`]), which [`Dpo::metrics`] reads.
    ///
    /// # Errors
    /// A buffer does not have its shape, or a launch fails.
    pub fn run(
        &self,
        device: &Device,
        coefficients: &Buffer<f32>,
        stats: &Buffer<f32>,
        rows: Rows<'_>,
        totals: Totals,
    ) -> Result<()> {
        let pairs = rows.pairs.len() / 2;
        let params = Params {
            beta: self.beta as f32,
            label_smoothing: self.label_smoothing as f32,
            dpo_scale: (self.weight / totals.pairs.max(1) as f64) as f32,
            sft_scale: (self.sft_weight / totals.chosen_tokens.max(1) as f64) as f32,
        };
        let Rows { logps, ref_logps, sequence_rows, pairs: table } = rows;
        preference_loss::pairs(device, coefficients, stats, logps, ref_logps, sequence_rows, table, params, pairs)
    }

    /// Adds one micro-batch's share of the step's metrics, under TRL's names; with a likelihood term also the two parts
    /// of the loss before their weights. `stats` are [`Dpo::run`]'s, downloaded.
    pub fn metrics(&self, sums: &mut MetricSums, stats: &[f32], totals: Totals) {
        let mut columns = [0.0; 6];
        let mut wins = 0.0;
        for pair in stats.chunks_exact(STATS) {
            columns.iter_mut().zip(pair).for_each(|(sum, &value)| *sum += f64::from(value));
            wins += f64::from(u8::from(pair[2] > pair[3]));
        }
        let [loss, nll, reward_chosen, reward_rejected, logps_chosen, logps_rejected] = columns;
        let (pairs, tokens) = (totals.pairs.max(1) as f64, totals.chosen_tokens.max(1) as f64);
        sums.add("loss", self.weight * loss / pairs + self.sft_weight * nll / tokens);
        if self.sft_weight > 0.0 {
            sums.add("dpo_loss", loss / pairs);
            sums.add("nll_loss", nll / tokens);
        }
        sums.add("rewards/chosen", reward_chosen / pairs);
        sums.add("rewards/rejected", reward_rejected / pairs);
        sums.add("rewards/margins", (reward_chosen - reward_rejected) / pairs);
        sums.add("rewards/accuracies", wins / pairs);
        sums.add("logps/chosen", logps_chosen / pairs);
        sums.add("logps/rejected", logps_rejected / pairs);
    }
}
