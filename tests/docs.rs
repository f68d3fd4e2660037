//! What users read leads where it says.

#![allow(clippy::unwrap_used, reason = "a failed test says where")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let in_folder = |folder: &str| {
        let files = fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|path| path.extension().is_some_and(|extension| extension == "md")).collect::<Vec<_>>()
    };
    [".", "docs", "bench", "examples"].iter().flat_map(|folder| in_folder(folder)).collect()
}

/// The lines of a page that are not shown as they are.
fn prose(page: &Path) -> Vec<String> {
    let text = fs::read_to_string(page).unwrap();
    let mut fenced = false;
    let is_prose = |line: &&str| {
        fenced ^= line.starts_with("```");
        !fenced && !line.starts_with("    ")
    };
    text.lines().filter(is_prose).map(str::to_owned).collect()
}

/// By what name each heading is linked to.
fn anchors(page: &Path) -> BTreeSet<String> {
    let slug = |heading: String| {
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
    };
    let headings = prose(page).into_iter().filter(|line| line.starts_with('#'));
    headings.map(|line| slug(line.trim_start_matches('#').trim().to_owned())).collect()
}

#[test]
fn every_link_leads_to_a_page_and_a_heading_that_are_there() {
    let mut links = 0;
    for page in pages() {
        let text = prose(&page).join("\n");
        for link in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            if link.starts_with("https://") {
                continue;
            }
            links += 1;
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { page.clone() } else { page.parent().unwrap().join(path) };
            assert!(target.exists(), "{}: {link} leads nowhere", page.display());
            assert!(anchor.is_empty() || anchors(&target).contains(anchor), "{}: no heading {link}", page.display());
        }
    }
    assert!(links > 100, "only {links} links were found");
}
