//! Reads ptxas's report.

/// What in ptxas's report fails the build: it exits 0 on spills, stack use and serialised wgmma, and all cost too much
/// to ship. Each line names its kernel.
pub fn judge(log: &str) -> Vec<String> {
    let quoted = |line: &str, before: &str| Some(line.split(before).nth(1)?.split('\'').next()?.to_string());
    let mut kernel = String::new();
    let mut bad = Vec::new();
    for line in log.lines() {
        if let Some(name) = quoted(line, "Compiling entry function '") {
            kernel = name;
        }
        let frame = line.contains("bytes stack frame")
            && line.trim() != "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads";
        if line.contains("(C75") {
            // Remarks stand before the kernels and name their own.
            let named = quoted(line, "function '").unwrap_or_default();
            bad.push(format!("kernel `{named}`: {}", line.trim()));
        } else if frame {
            bad.push(format!("kernel `{kernel}`: {}", line.trim()));
        }
    }
    bad
}
