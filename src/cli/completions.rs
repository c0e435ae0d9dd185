//! `warpo completions SHELL`: the script by which a shell completes commands, options and their values.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap_complete::Shell;

/// Where each shell looks for its script.
pub const PLACES: &str = "\
bash:       warpo completions bash > ~/.local/share/bash-completion/completions/warpo
zsh:        warpo completions zsh > \"${fpath[1]}/_warpo\"
fish:       warpo completions fish > ~/.config/fish/completions/warpo.fish
elvish:     warpo completions elvish >> ~/.config/elvish/rc.elv
powershell: warpo completions powershell >> $PROFILE";

#[derive(clap::Args)]
pub struct Args {
    /// Shell whose script is written to standard output
    shell: Shell,
}

pub fn run(args: &Args, tree: clap::Command) -> Result<ExitCode> {
    super::print(&script(args.shell, tree)?)?;
    Ok(ExitCode::SUCCESS)
}

fn script(shell: Shell, mut tree: clap::Command) -> Result<String> {
    let mut bytes = Vec::new();
    clap_complete::generate(shell, &mut tree, "warpo", &mut bytes);
    String::from_utf8(bytes).context("the script is no text")
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, process::Command};

    use clap::ValueEnum;

    use super::{super::man::commands, *};

    /// The long options of a command, `--help` among them.
    fn options(command: &clap::Command) -> Vec<String> {
        command.get_arguments().filter_map(|option| option.get_long()).map(|name| format!("--{name}")).collect()
    }

    /// What bash offers behind each of these words.
    fn offered(lines: &[Vec<String>]) -> Vec<Vec<String>> {
        let mut asked = script(Shell::Bash, super::super::tree()).unwrap();
        for words in lines {
            let (all, at) = (words.join(" "), words.len() - 1);
            let (last, before) = (&words[at], &words[at - 1]);
            let last = if last == "''" { "" } else { last };
            asked += &format!(
                "\nCOMP_WORDS=({all}); COMP_CWORD={at}; COMPREPLY=(); _warpo warpo '{last}' {before}; echo \"${{COMPREPLY[*]}}\""
            );
        }
        let output = Command::new("bash").args(["--norc", "-c", &asked]).output().expect("bash");
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| line.split(' ').map(str::to_owned).collect()).collect()
    }

    #[test]
    fn bash_offers_every_command_and_option() {
        let tree = commands(super::super::tree());
        let words = |path: &[String], last: &str| [path, &[last.to_owned()]].concat();
        let found = offered(&tree.iter().map(|(path, _)| words(path, "--")).collect::<Vec<_>>());
        assert_eq!(found.len(), tree.len());
        for ((path, command), found) in tree.iter().zip(found) {
            let missing: Vec<_> = options(command).into_iter().filter(|option| !found.contains(option)).collect();
            assert!(missing.is_empty(), "{path:?}: {missing:?} are not among {found:?}");
        }
        let above: Vec<_> = tree.iter().filter(|(_, command)| command.has_subcommands()).collect();
        assert!(!above.is_empty());
        let found = offered(&above.iter().map(|(path, _)| words(path, "''")).collect::<Vec<_>>());
        for ((path, command), found) in above.iter().zip(found) {
            let names = command.get_subcommands().map(|below| below.get_name().to_owned());
            let missing: Vec<_> = names.filter(|name| !found.contains(name)).collect();
            assert!(missing.is_empty(), "{path:?}: {missing:?} are not among {found:?}");
        }
    }

    /// As often as there are commands that have it.
    #[test]
    fn every_shell_has_every_command_and_option() {
        let tree = commands(super::super::tree());
        let mut wanted = BTreeMap::<String, usize>::new();
        for (path, command) in &tree {
            options(command).into_iter().for_each(|option| *wanted.entry(option).or_default() += 1);
            *wanted.entry(path.last().unwrap().clone()).or_default() += 1;
        }
        for &shell in Shell::value_variants() {
            let text = script(shell, super::super::tree()).unwrap();
            for (word, &times) in &wanted {
                let found = text.lines().filter(|line| mentions(line, word)).count();
                assert!(found >= times, "{shell}: `{word}` stands in {found} lines, {times} commands have it");
            }
        }
    }

    /// Whether a line has this word, or the option as fish writes it.
    fn mentions(line: &str, word: &str) -> bool {
        let whole = |word: &str| {
            let ends = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric() && c != '-' && c != '_');
            line.match_indices(word).any(|(at, _)| ends(line[at + word.len()..].chars().next()))
        };
        whole(word) || word.strip_prefix("--").is_some_and(|name| whole(&format!("-l {name}")))
    }
}
