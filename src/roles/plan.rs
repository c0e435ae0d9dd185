//! The memory of a run: a plan for the policy, and one for every other model that runs beside it.

use std::fmt;

use anyhow::Result;

use crate::{
    device::{DType, Device},
    error::Error,
    model::MemoryPlan,
    units::human,
};

/// Plans by role.
#[derive(Clone, Debug)]
pub struct RunPlan {
    /// Of the model that is trained.
    pub policy: MemoryPlan,
    /// Of the other models, under the names that people read.
    pub others: Vec<(&'static str, MemoryPlan)>,
    /// Bytes of page-locked memory of the host.
    pub on_host: usize,
}

impl RunPlan {
    /// The plan of that role.
    pub fn other(&self, name: &str) -> Option<&MemoryPlan> {
        self.others.iter().find(|(role, _)| *role == name).map(|(_, plan)| plan)
    }

    /// Bytes in all.
    pub fn total(&self) -> usize {
        self.policy.total() + self.others.iter().map(|(_, plan)| plan.total()).sum::<usize>()
    }

    /// Refuses a plan for which the device has no memory.
    ///
    /// # Errors
    /// The total is more than is free.
    pub fn check(&self, device: &Device) -> Result<()> {
        self.check_free(device.memory().free)
    }

    /// The same where `free` bytes are free; 0 stands for an operating system that does not say.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn check_free(&self, free: usize) -> Result<()> {
        let (total, MemoryPlan { capacity, .. }) = (self.total(), &self.policy);
        if free == 0 || total <= free {
            return Ok(());
        }
        let line = format!(
            "the run needs {} of device memory and {} are free; {} of it grow with the micro-batch of {} tokens and {} \
             rows",
            human(total),
            human(free),
            human(self.policy.growing()),
            capacity.tokens,
            capacity.rows
        );
        Err(Error::OutOfMemory { wanted: total, free, line }.into())
    }
}

impl From<MemoryPlan> for RunPlan {
    /// One model alone.
    fn from(policy: MemoryPlan) -> Self {
        Self { policy, others: Vec::new(), on_host: 0 }
    }
}

impl fmt::Display for RunPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MemoryPlan { capacity, .. } = &self.policy;
        let precision = if self.policy.precision == DType::Bf16 { "bf16" } else { "f32" };
        writeln!(f, "memory for {precision}, {} tokens, {} rows", capacity.tokens, capacity.rows)?;
        let others = self.others.iter().map(|(name, plan)| (*name, plan.total()));
        for (name, bytes) in self.policy.parts().into_iter().chain(others).filter(|&(_, bytes)| bytes > 0) {
            writeln!(f, "  {name:<18} {bytes:>16} bytes {:>12}", human(bytes))?;
        }
        write!(f, "  {:<18} {:>16} bytes {:>12}", "total", self.total(), human(self.total()))
    }
}
