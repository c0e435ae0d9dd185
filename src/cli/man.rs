//! `warpo man`: pages for `man`, of one command or of all.

use std::{fs, io::Write as _, path::Path, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, bail};
use clap_mangen::Man;

use crate::{files::write_whole, spelling};

#[derive(clap::Args)]
pub struct Args {
    /// Command to show, such as `train`; without it the page of warpo itself
    #[arg(value_name = "COMMAND")]
    command: Vec<String>,
    /// Writes the page of every command into this folder, which is made if there is none
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    out: Option<PathBuf>,
}

pub fn run(args: &Args, tree: clap::Command) -> Result<ExitCode> {
    let commands = commands(tree);
    let said = match &args.out {
        Some(folder) => write_all(commands, folder)?,
        None => page(find(commands, &args.command)?)?,
    };
    super::print(&said)?;
    Ok(ExitCode::SUCCESS)
}

/// Every command by its words, `warpo` first.
pub(super) fn commands(tree: clap::Command) -> Vec<(Vec<String>, clap::Command)> {
    let mut tree = tree.disable_help_subcommand(true);
    tree.build();
    let mut found = Vec::new();
    let mut open = vec![(vec!["warpo".to_owned()], tree)];
    while let Some((path, command)) = open.pop() {
        let below = command.get_subcommands().filter(|below| !below.is_hide_set());
        open.extend(below.map(|below| ([&path[..], &[below.get_name().to_owned()]].concat(), below.clone())));
        found.push((path, command));
    }
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    found
}

fn find(commands: Vec<(Vec<String>, clap::Command)>, words: &[String]) -> Result<clap::Command> {
    let names: Vec<String> = commands.iter().map(|(path, _)| path[1..].join(" ")).collect();
    match commands.into_iter().find(|(path, _)| path[1..] == *words) {
        Some((_, command)) => Ok(command),
        None => {
            let asked = words.join(" ");
            let hint = spelling::hint(&asked, names.iter().map(String::as_str));
            bail!("there is no command `{asked}`: {hint}`warpo --help` lists them")
        }
    }
}

fn page(command: clap::Command) -> Result<String> {
    let mut bytes = Vec::new();
    let version = env!("CARGO_PKG_VERSION");
    let title = command.get_display_name().unwrap_or("warpo").to_uppercase();
    Man::new(command).title(title).source(format!("warpo {version}")).render(&mut bytes)?;
    String::from_utf8(bytes).context("the page is no text")
}

/// Writes `warpo.1`, `warpo-train.1` and so on; says what was written.
fn write_all(commands: Vec<(Vec<String>, clap::Command)>, folder: &Path) -> Result<String> {
    fs::create_dir_all(folder).with_context(|| format!("{}: the folder cannot be made", folder.display()))?;
    let mut said = String::new();
    for (path, command) in commands {
        let (file, text) = (folder.join(format!("{}.1", path.join("-"))), page(command)?);
        write_whole(&file, |out| Ok(out.write_all(text.as_bytes())?))?;
        said += &format!("{}\n", file.display());
    }
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text of a page as a reader sees it, near enough: without roff's escapes and breaks.
    fn plain(page: &str) -> String {
        page.replace("\\*(Aq", "'").replace("\\fB", "").replace("\\fI", "").replace("\\fR", "").replace('\\', "")
    }

    #[test]
    fn every_command_and_option_has_its_place() {
        let all = commands(super::super::tree());
        assert!(all.len() > 5);
        for (path, command) in all {
            let text = plain(&page(command.clone()).unwrap());
            for option in command.get_arguments() {
                let name = option.get_long().map(|name| format!("--{name}"));
                let name = name.or(option.get_value_names().map(|names| names[0].to_string())).unwrap();
                assert!(text.contains(&name), "{path:?}: no {name} in {text}");
                if matches!(option.get_id().as_str(), "help" | "version") {
                    continue;
                }
                let help = option.get_help().map(ToString::to_string).unwrap_or_default();
                let help = help.lines().next().unwrap_or_default();
                assert!(!help.is_empty() && text.contains(help), "{path:?}: no words for {name} in {text}");
            }
            for below in command.get_subcommands() {
                let name = format!("{}-{}(1)", path.join("-"), below.get_name());
                assert!(text.contains(&name), "{path:?}: no {name} in {text}");
            }
        }
    }

    #[test]
    fn a_folder_gets_every_page() {
        let folder = tempfile::tempdir().unwrap();
        let said = write_all(commands(super::super::tree()), &folder.path().join("man1")).unwrap();
        let train = fs::read_to_string(folder.path().join("man1/warpo-train.1")).unwrap();
        assert!(plain(&train).contains("--overwrite"), "{train}");
        assert_eq!(said.lines().count(), commands(super::super::tree()).len());
        assert!(said.lines().all(|file| Path::new(file).is_file()), "{said}");
    }
}
