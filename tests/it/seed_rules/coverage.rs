//! Checks that every rule has a test, or a state that names the missing feature.

use std::collections::{BTreeMap, BTreeSet};

use regex::Regex;

/// The documents, each with its rules, its tests, the prefix of its rule ids, and its number of rules.
const DOCUMENTS: &[(&str, &str, &str, usize)] = &[
    (
        include_str!("rules/amplitude.csv"),
        include_str!("amplitude.rs"),
        "A1",
        28,
    ),
    (
        include_str!("rules/amplitude_products.csv"),
        include_str!("amplitude_products.rs"),
        "A2",
        41,
    ),
    (
        include_str!("rules/guide.csv"),
        include_str!("guide.rs"),
        "G",
        38,
    ),
    (
        include_str!("rules/idenfy.csv"),
        include_str!("idenfy.rs"),
        "I",
        10,
    ),
    (
        include_str!("rules/yugabytedb.csv"),
        include_str!("yugabytedb.rs"),
        "Y",
        26,
    ),
];

/// The states of a rule. A test shows the rule, or the rule waits for one of two missing features: usage
/// counts, or a web page.
const STATES: &[&str] = &["shown", "usage", "page"];

/// The source of the HTTP tests, which cover the rules about requests in all documents.
const OVER_HTTP: &str = include_str!("../http/rules.rs");

/// The rules that need a test over HTTP, even if the library's own tests show them too.
const SPEAK_OF_REQUESTS: &[&str] = &[
    "A1-06", "A1-25", "A2-10", "A2-11", "A2-15", "A2-30", "A2-31", "G-22", "G-36", "I-02", "Y-01",
    "Y-02", "Y-25", "Y-26",
];

/// Returns the state of each rule of a document, by id.
fn rules(csv: &str) -> BTreeMap<String, String> {
    let lines = csv.lines().skip(1).filter(|line| !line.is_empty());
    let parsed = lines.map(|line| {
        let mut fields = line.splitn(3, ',');
        let mut field = || {
            fields
                .next()
                .unwrap_or_else(|| panic!("three fields in {line:?}"))
        };
        let (id, state, words) = (field(), field(), field());
        assert!(STATES.contains(&state), "{id} has state {state:?}");
        assert!(words.len() > 15, "{id} has no description");
        (id.to_owned(), state.to_owned())
    });
    let parsed: Vec<_> = parsed.collect();
    let rules: BTreeMap<_, _> = parsed.iter().cloned().collect();
    assert_eq!(rules.len(), parsed.len(), "each id occurs once");
    rules
}

/// Returns the rules that a file's tests are named after.
fn tested(source: &str) -> BTreeSet<String> {
    let name = Regex::new(r"#\[test\]\s*fn ([a-z]\d?)_(\d\d)_[a-z]").unwrap();
    let found = name.captures_iter(source);
    found
        .map(|rule| format!("{}-{}", rule[1].to_uppercase(), &rule[2]))
        .collect()
}

#[test]
fn every_rule_has_a_test_or_names_what_it_waits_for() {
    for (csv, source, letters, count) in DOCUMENTS {
        let rules = rules(csv);
        let expected: BTreeSet<_> = (1..=*count).map(|n| format!("{letters}-{n:02}")).collect();
        assert_eq!(rules.keys().cloned().collect::<BTreeSet<_>>(), expected);
        let shown = rules.iter().filter(|(_, state)| *state == "shown");
        let shown: BTreeSet<_> = shown.map(|(id, _)| id.clone()).collect();
        let over_http = tested(OVER_HTTP).into_iter();
        let over_http = over_http.filter(|id| id.starts_with(&format!("{letters}-")));
        let tested: BTreeSet<_> = tested(source).into_iter().chain(over_http).collect();
        assert_eq!(
            tested, shown,
            "the tests of {letters} are not the rules with the state `shown`"
        );
    }
}

#[test]
fn every_rule_about_requests_is_tested_over_http() {
    let expected = SPEAK_OF_REQUESTS.iter().map(|id| (*id).to_owned());
    assert_eq!(tested(OVER_HTTP), expected.collect());
}

#[test]
fn a_rule_without_a_test_is_detected() {
    let source = "#[test]\nfn a1_24_at_most_fifty() {}\n#[test]\nfn something_else() {}";
    assert_eq!(tested(source), BTreeSet::from(["A1-24".to_owned()]));
}
