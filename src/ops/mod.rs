//! One file per kernel stem: checks shapes, chooses the launch, calls the launcher. The only callers of the launchers.

pub mod rmsnorm;

use anyhow::{Result, ensure};

use crate::device::{Buffer, Element};

/// Checks that a buffer holds what its shape says.
pub(crate) fn expect_len<T: Element>(what: &str, buffer: &Buffer<T>, shape: &[usize]) -> Result<()> {
    let len: usize = shape.iter().product();
    ensure!(buffer.len() == len, "{what}: expected {shape:?} = {len} elements, found {}", buffer.len());
    Ok(())
}
