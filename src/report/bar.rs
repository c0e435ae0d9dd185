//! Progress bars on standard error.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar, or a count without a known end.
pub(super) struct Bar(ProgressBar);

impl Bar {
    /// Steps `first..total` are to be run.
    pub fn of_steps(first: u64, total: u64) -> Option<Self> {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr()).with_position(first);
        let style = ProgressStyle::with_template("{bar:24} {pos}/{len}  {msg}  {eta} left");
        bar.set_style(style.expect("the template is constant").progress_chars("=> "));
        bar.reset_eta();
        Some(Self(bar))
    }

    /// A count of rows; `what` stands before it.
    pub fn of_rows(what: &str) -> Option<Self> {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{msg}  {human_pos} rows  {per_sec}");
        bar.set_style(style.expect("the template is constant"));
        Some(Self(bar.with_message(what.to_string())))
    }

    /// Prints while the bar is out of the way.
    pub fn suspend(&self, print: impl FnOnce()) {
        self.0.suspend(print);
    }

    pub fn set_message(&self, message: &str) {
        self.0.set_message(message.to_string());
    }

    pub fn set_position(&self, position: u64) {
        self.0.set_position(position);
    }

    /// Takes the bar away.
    pub fn clear(&self) {
        self.0.finish_and_clear();
    }
}
