//! Signals that end a run: the first asks it to end with everything saved, the second ends the process.

use std::{
    fs,
    io::{IsTerminal, Write, stderr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    flag,
    iterator::Signals,
    low_level,
};

use crate::stop::{Phase, Stop};

/// Exit code of a run that was interrupted and saved, as shells count a SIGINT.
pub const INTERRUPTED: u8 = 130;

/// `timeout` and some supervisors send one request twice, to the process and to its group: what comes this soon after the
/// first is the same request. No hand is as fast.
const SAME_REQUEST: Duration = Duration::from_millis(50);

/// Makes SIGINT, SIGTERM and SIGHUP ask `stop`. A second SIGINT or SIGTERM ends the process at once, whatever the run is
/// at; a second SIGHUP does not, for a terminal that closes sends one itself and has the shell send another. SIGHUP is left
/// alone where the program was started with it ignored, as `nohup` does.
///
/// # Errors
/// The handlers cannot be set.
pub fn listen(stop: &Stop) -> Result<()> {
    let armed = Arc::new(AtomicBool::new(false));
    let hears_hangup = !ignored(SIGHUP);
    let set = || -> std::io::Result<Signals> {
        let mut heard = vec![SIGINT, SIGTERM];
        for &signal in &heard {
            // In the handler itself: it works when every thread hangs and when nobody reads the output.
            flag::register_conditional_shutdown(signal, INTERRUPTED.into(), armed.clone())?;
        }
        heard.extend(hears_hangup.then_some(SIGHUP));
        for &signal in &heard {
            flag::register(signal, stop.flag())?;
        }
        Signals::new(heard)
    };
    let mut signals = set().context("the handlers of signals cannot be set")?;
    let (stop, armed) = (stop.clone(), armed.clone());
    let wait = move || {
        if signals.forever().next().is_some() {
            // Beside the answer, which may hang in a pipe that nobody reads, and at once, lest the run ends before it.
            let arm = move || {
                thread::sleep(SAME_REQUEST);
                armed.store(true, Ordering::SeqCst);
            };
            thread::spawn(arm);
            answer(&stop);
        }
    };
    thread::Builder::new().name("signals".into()).spawn(wait).context("the thread for signals cannot be started")?;
    Ok(())
}

/// Tells whoever still reads what happens next, and ends a process that has nothing to save.
fn answer(stop: &Stop) {
    let phase = stop.phase();
    // A progress bar may stand on the line.
    let clear = if stderr().is_terminal() { "\r\x1b[K" } else { "" };
    let _ = writeln!(stderr(), "{clear}{}", phase.answer());
    if phase == Phase::Preparing {
        // Not `std::process::exit`: what runs at a usual exit may wait for a thread that is at work.
        low_level::exit(INTERRUPTED.into());
    }
}

/// Whether the process was started with this signal ignored. Where the system does not say, it counts as ignored: its
/// default then still ends the process.
fn ignored(signal: i32) -> bool {
    let Ok(status) = fs::read_to_string("/proc/self/status") else { return true };
    in_mask(&status, signal).unwrap_or(true)
}

/// The bit of a signal in the line `SigIgn:` of `/proc/PID/status`.
fn in_mask(status: &str, signal: i32) -> Option<bool> {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
    Some(u64::from_str_radix(mask.trim(), 16).ok()? >> (signal - 1) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_mask() {
        let status = "Name:\twarpo\nSigBlk:\tffffffffffffffff\nSigIgn:\t0000000000001001\nSigCgt:\t0\n";
        assert_eq!(
            [SIGHUP, SIGINT, 13, SIGTERM].map(|signal| in_mask(status, signal)),
            [Some(true), Some(false), Some(true), Some(false)]
        );
        assert_eq!(in_mask("Name:\twarpo\n", SIGHUP), None);
        assert_eq!(in_mask("SigIgn:\tnonsense\n", SIGHUP), None);
    }
}
