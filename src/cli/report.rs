//! `warpo report RUN...`: how runs went, in words and in figures.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;

use crate::{
    escape::visible_lines,
    report::{history::History, summary},
};

#[derive(clap::Args)]
pub struct Args {
    /// Folders of runs, live or finished
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<PathBuf>,
    /// Writes one page with all figures and tables; an earlier report is replaced, any other file is not
    #[arg(long, value_name = "FILE.html")]
    out: Option<PathBuf>,
    /// Writes each figure as SVG into this folder
    #[arg(long, value_name = "DIR")]
    svg: Option<PathBuf>,
    /// Writes each figure as PNG into this folder
    #[arg(long, value_name = "DIR")]
    png: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let runs = History::read_all(&args.runs)?;
    let mut text = summary::text(&runs);
    for line in draw(args, &runs)? {
        text += &format!("\n{line}");
    }
    super::print(&visible_lines(&(text.trim_end().to_owned() + "\n")))?;
    Ok(ExitCode::SUCCESS)
}

/// Writes what is asked for, and says a line about each.
#[cfg(feature = "figures")]
fn draw(args: &Args, runs: &[History]) -> Result<Vec<String>> {
    use crate::report::pictures;

    let mut said = Vec::new();
    if let Some(path) = &args.out {
        pictures::write_page(path, runs)?;
        said.push(format!("the page is {}", path.display()));
    }
    if let Some(folder) = &args.svg {
        said.push(format!("{} figures are in {}", pictures::write_svgs(folder, runs)?, folder.display()));
    }
    if let Some(folder) = &args.png {
        said.push(format!("{} figures are in {}", pictures::write_pngs(folder, runs)?, folder.display()));
    }
    Ok(said)
}

#[cfg(not(feature = "figures"))]
fn draw(args: &Args, _: &[History]) -> Result<Vec<String>> {
    let asked = [&args.out, &args.svg, &args.png].into_iter().any(Option::is_some);
    anyhow::ensure!(
        !asked,
        "--out, --svg and --png: this program was built without figures: build it with the feature `figures`"
    );
    Ok(Vec::new())
}
