//! What shells and manual pages are given to know our commands by.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::{
    fs,
    process::{Command, Output},
};

use sandbox::packages::{self, Package};
use support::daemon_binary;

fn kube2irsa(arguments: &[&str]) -> Output {
    // As where they are made: nothing of this machine may be in them.
    Command::new(daemon_binary())
        .args(arguments)
        .env_clear()
        .env("KUBE2IRSA_NODE_NAME", "of-this-node")
        .output()
        .unwrap()
}

fn text(output: Output) -> String {
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The flags that `--help` of a command names.
fn flags(arguments: &[&str]) -> Vec<String> {
    let help = text(kube2irsa(&[arguments, &["--help"]].concat()));
    let words = help.split_whitespace().filter(|word| word.starts_with("--"));
    words.map(|word| word.trim_end_matches([',', '.', ':', ')']).to_owned()).filter(|word| word.len() > 2).collect()
}

#[test]
fn bash_takes_the_script_and_completes_commands_flags_and_their_words() {
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("kube2irsa.bash");
    fs::write(&script, text(kube2irsa(&["completions", "bash"]))).unwrap();
    let bash = |code: &str| text(Command::new("bash").args(["--norc", "-c", code]).output().unwrap());
    bash(&format!("bash -n {}", script.display()));
    let completed = |words: &str| {
        let last = words.split(' ').count() - 1;
        bash(&format!(
            "source {}; COMP_WORDS=({words}); COMP_CWORD={last}; _kube2irsa kube2irsa \"${{COMP_WORDS[$COMP_CWORD]}}\" x; \
             echo \"${{COMPREPLY[*]}}\"",
            script.display()
        ))
    };
    assert_eq!(completed("kube2irsa pro"), "probe\n");
    assert_eq!(completed("kube2irsa probe re"), "ready\n");
    assert_eq!(completed("kube2irsa run --node-n"), "--node-name\n");
    assert_eq!(completed("kube2irsa rules remove --sta"), "--stay --state-dir\n");
}

#[test]
fn there_is_a_script_for_each_shell_and_all_flags_of_run_are_in_it() {
    let flags = flags(&["run"]);
    assert!(flags.len() > 40, "{flags:?}");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = text(kube2irsa(&["completions", shell]));
        let missing = flags.iter().filter(|flag| !script.contains(flag.trim_start_matches('-'))).collect::<Vec<_>>();
        assert!(missing.is_empty(), "{shell}: {missing:?}");
    }
    assert_eq!(kube2irsa(&["completions", "tcsh"]).status.code(), Some(64));
}

#[test]
fn there_is_a_manual_page_for_each_command_with_all_its_flags_and_man_prints_it() {
    packages::ensure(&[Package { command: "man", package: "man-db" }], &mut |line| println!("{line}")).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let pages = directory.path().join("made/man1");
    text(kube2irsa(&["man", pages.to_str().unwrap()]));
    let printed = |page: &str| {
        let mut man = Command::new("man");
        man.env("LC_ALL", "C.UTF-8").env("MANWIDTH", "200").env("MANPAGER", "cat").args(["--warnings", "-l"]);
        text(man.arg(pages.join(page)).output().unwrap())
    };
    for command in [
        &["run"][..],
        &["rules", "show"],
        &["rules", "check"],
        &["rules", "remove"],
        &["probe"],
        &["explain"],
        &["completions"],
        &["man"],
    ] {
        let page = printed(&format!("kube2irsa-{}.1", command.join("-")));
        let missing = flags(command).into_iter().filter(|flag| !page.contains(flag)).collect::<Vec<_>>();
        assert!(missing.is_empty() && page.contains("--help"), "{command:?}: {missing:?}\n{page}");
        assert!(!page.contains("of-this-node"), "{page}");
    }
    let page = text(kube2irsa(&["man"]));
    assert!(page.contains(".TH kube2irsa 1") && page.contains("kube2irsa\\-explain"), "{page}");
}
