//! `warpo init`: a first configuration for a model and a data file, or from another tool's YAML.

use std::{
    io::{Write, stderr},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Map, Value};

use crate::{
    config::init::{self, Draft, Given},
    escape::visible,
    files::{LARGEST_TEXT, read_named, write_whole},
};

/// Characters of a value that a line on the terminal shows.
const SHOWN: usize = 80;

#[derive(clap::Args)]
pub struct Args {
    /// YAML file that TRL, axolotl or LLaMA-Factory trains from: carries over what it says, lists what it cannot
    #[arg(long, value_name = "FILE.yaml")]
    from: Option<PathBuf>,
    /// Hugging Face folder, or an id that is in Hugging Face's cache
    #[arg(long, value_name = "DIR", required_unless_present = "from")]
    model: Option<PathBuf>,
    /// Rows to train on: every form and file type that `warpo train` reads
    #[arg(long, value_name = "FILE", required_unless_present = "from")]
    data: Option<PathBuf>,
    /// Configuration to write, which must not exist; standard output if not given
    #[arg(long, value_name = "RUN.toml")]
    out: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let out = args.out.as_deref().filter(|out| *out != Path::new("-"));
    if let Some(out) = out {
        ensure!(out.symlink_metadata().is_err(), "{}: exists already: name another file or remove it", out.display());
    }
    let given = Given { model: args.model.as_deref(), data: args.data.as_deref(), out };
    let draft = match &args.from {
        Some(file) => init::carried_over(&read_yaml(file)?, file, &given)?,
        None => init::fresh(&given)?,
    };
    let text = draft.to_toml();
    match out {
        Some(out) => write_whole(out, |file| Ok(file.write_all(text.as_bytes())?))?,
        None => super::print(&text)?,
    }
    say(&draft, out);
    Ok(ExitCode::SUCCESS)
}

/// What was left out and where the file is, on standard error: standard output may hold the file.
fn say(draft: &Draft, out: Option<&Path>) {
    let left = draft.left_out().iter().map(|left| format!("not carried over: {}", left.line(SHOWN)));
    let wrote = out.map(|out| format!("wrote {}", visible(&out.display().to_string())));
    for line in left.chain(wrote) {
        let _ = writeln!(stderr(), "{line}");
    }
}

/// The keys of a YAML file.
fn read_yaml(file: &Path) -> Result<Map<String, Value>> {
    let shown = file.display();
    let bytes = read_named(file, LARGEST_TEXT)
        .with_context(|| format!("{shown}: cannot be read: name an existing YAML file"))?;
    let text =
        String::from_utf8(bytes).map_err(|_| anyhow!("{shown}: the bytes are not UTF-8; save the file as UTF-8"))?;
    let options = serde_saphyr::options! { with_snippet: false };
    let read = serde_saphyr::from_str_with_options::<Value>(&text, options);
    match read.map_err(|why| anyhow!("{shown}: {}; correct the YAML", one_line(&why.to_string())))? {
        Value::Object(keys) => Ok(keys),
        _ => bail!("{shown}: is no table of settings: name the file that TRL, axolotl or LLaMA-Factory trains from"),
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
