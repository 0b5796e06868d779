//! Every line that the library logs at warn or error is in `docs/logs.md`, with its cause and what to do.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use regex::Regex;

use crate::house::all_sources;

/// Returns the arguments of a macro call: the text up to the parenthesis that closes the call.
fn arguments(after: &str) -> &str {
    let (mut depth, mut quoted, mut escaped) = (1, false, false);
    for (at, c) in after.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '(' if !quoted => depth += 1,
            ')' if !quoted => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return &after[..at];
        }
    }
    panic!("unbalanced call: {after:.200}");
}

/// Returns the messages of `tracing` calls in a source, each with its level. A message ends at its first
/// placeholder.
fn messages(source: &str) -> Vec<(String, String)> {
    let call = Regex::new(r"tracing::(warn|error)!\(").unwrap();
    let literal = Regex::new(r#"(?s)"((?:[^"\\]|\\.)*)""#).unwrap();
    let continued = Regex::new(r"\\\n\s*").unwrap();
    let tests = source.find("#[cfg(test)]\nmod ").unwrap_or(source.len());
    let mut found = Vec::new();
    for start in call.captures_iter(&source[..tests]) {
        let given = arguments(&source[start.get(0).unwrap().end()..]);
        let message = literal.captures_iter(given).last();
        let message = message.unwrap_or_else(|| panic!("no message in {given}"));
        let message = continued.replace_all(&message[1], "");
        let fixed = message.split('{').next().unwrap().trim();
        // The page quotes a message as code, which cannot contain the same quotes.
        let fixed = fixed.replace('`', "'");
        found.push((fixed, start[1].to_owned()));
    }
    found
}

#[test]
fn every_line_at_warn_and_error_is_documented_with_its_level() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/logs.md");
    let page = fs::read_to_string(page).unwrap();
    let mut documented = BTreeSet::new();
    for line in page.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<_> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        if let [message, level @ ("warn" | "error"), cause, action] = cells[..] {
            let message = message.trim_matches('`').split('…').next().unwrap().trim();
            assert!(!cause.is_empty() && !action.is_empty(), "{line}");
            documented.insert((message.to_owned(), level.to_owned()));
        }
    }
    let mut logged = BTreeSet::new();
    for path in all_sources() {
        logged.extend(messages(&fs::read_to_string(path).unwrap()));
    }
    assert!(logged.len() > 20, "{logged:?}");
    let missing: Vec<_> = logged.difference(&documented).collect();
    let outdated: Vec<_> = documented.difference(&logged).collect();
    assert!(
        missing.is_empty() && outdated.is_empty(),
        "missing {missing:#?}, outdated {outdated:#?}"
    );
}
