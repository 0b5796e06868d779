//! House rules that the compiler does not check, such as the direction of imports and the places for
//! `unsafe`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;

/// The rooms (top-level modules) of `src`, and the rooms that each of them may import.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("core", &[]),
    ("clock", &["core"]),
    ("entropy", &["core"]),
    ("observe", &["core"]),
    ("joint", &[]),
    ("live_policies", &["core"]),
    ("pepper_file", &["core", "entropy", "observe"]),
    ("store", &["core", "observe"]),
    ("events", &["core", "clock", "store"]),
    ("timekeeper", &["core", "clock", "observe"]),
    (
        "manager",
        &[
            "core",
            "clock",
            "entropy",
            "joint",
            "live_policies",
            "observe",
            "store",
            "timekeeper",
        ],
    ),
    (
        "replica",
        &[
            "core",
            "clock",
            "entropy",
            "joint",
            "live_policies",
            "observe",
            "store",
            "timekeeper",
        ],
    ),
    (
        "verifier",
        &[
            "core",
            "clock",
            "entropy",
            "joint",
            "live_policies",
            "observe",
            "store",
            "manager",
            "replica",
            "timekeeper",
        ],
    ),
    (
        "keyward",
        &[
            "core",
            "clock",
            "entropy",
            "live_policies",
            "observe",
            "store",
            "events",
            "manager",
            "replica",
            "timekeeper",
            "verifier",
        ],
    ),
    ("web", &["core", "observe", "verifier", "keyward"]),
];

/// Files that may contain `unsafe`, and how often. The only `unsafe` code is two hints about memory: a prefetch, and huge
/// pages.
const MAY_BE_UNSAFE: &[(&str, usize)] = &[("replica/index/memory.rs", 2)];

/// Files outside `core` that must be as pure as `core`: no I/O, no clock, no randomness.
const PURE: &[&str] = &[
    "events/cursor.rs",
    "events/event.rs",
    "events/id.rs",
    "events/notice.rs",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../src")
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Returns every source file of the library.
pub(crate) fn all_sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    sources(&root(), &mut found);
    assert!(found.len() > 30, "the test found the sources");
    found
}

/// Returns the room of a file: the first component of its path below `src`.
fn room(path: &Path) -> String {
    let below = path.strip_prefix(root()).unwrap();
    let first = below
        .components()
        .next()
        .unwrap()
        .as_os_str()
        .to_str()
        .unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// Returns the code without comments and without unit tests. Unit tests may import any room.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    let lines = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

fn imports(code: &str) -> BTreeSet<String> {
    let one = Regex::new(r"\bcrate::([a-z_]+)(?:::|\b)").unwrap();
    one.captures_iter(code)
        .map(|found| found[1].to_owned())
        .collect()
}

#[test]
fn imports_point_in_one_direction() {
    for path in all_sources() {
        let room = room(&path);
        if room == "lib" {
            continue;
        }
        let (_, allowed) = MAY_IMPORT
            .iter()
            .find(|(name, _)| *name == room)
            .unwrap_or_else(|| panic!("room {room} is missing from MAY_IMPORT"));
        // Exported macros are at the crate root, under names that start with `__`.
        let modules = |import: &String| !import.starts_with("__");
        let found = imports(&code(&fs::read_to_string(&path).unwrap()));
        for import in found.into_iter().filter(modules) {
            let inside = import == room || allowed.contains(&import.as_str());
            assert!(inside, "{} imports {import}", path.display());
        }
    }
}

#[test]
fn an_import_in_the_wrong_direction_is_detected() {
    let found = imports(&code(
        "use crate::core::id::KeyId;\n// crate::web\nlet x = crate::store::Row;",
    ));
    assert_eq!(
        found,
        BTreeSet::from(["core".to_owned(), "store".to_owned()])
    );
}

#[test]
fn the_core_is_pure() {
    let impure = Regex::new(
        r"\basync fn\b|\.await\b|std::(fs|net::[A-Z]*Listener|thread|process|env)\b|SystemTime|Instant\b|\bRng\b|SysRng|tracing::|arc_swap|std::sync::(atomic|mpsc|Mutex|Once|OnceLock|RwLock)\b",
    )
    .unwrap();
    let named = PURE.iter().map(|file| root().join(file));
    let core = all_sources()
        .into_iter()
        .filter(|path| room(path) == "core");
    for path in core.chain(named) {
        let code = code(&fs::read_to_string(&path).unwrap());
        assert!(
            !impure.is_match(&code),
            "{}: {:?}",
            path.display(),
            impure.find(&code)
        );
    }
}

#[test]
fn unsafe_code_is_in_one_named_file() {
    let word = Regex::new(r"\bunsafe\b").unwrap();
    for path in all_sources() {
        let named = path
            .strip_prefix(root())
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        let found = word
            .find_iter(&code(&fs::read_to_string(&path).unwrap()))
            .count();
        let allowed = MAY_BE_UNSAFE.iter().find(|(file, _)| *file == named);
        let allowed = allowed.map_or(0, |(_, allowed)| *allowed);
        assert_eq!(found, allowed, "{named}");
    }
    let manifest = fs::read_to_string(root().join("../Cargo.toml")).unwrap();
    assert!(
        manifest.contains("unsafe_code = \"deny\""),
        "the manifest denies unsafe code"
    );
}

#[test]
fn the_library_never_exposes_a_secret() {
    let leaving = Regex::new(r"\.expose\(\)").unwrap();
    let inside: Vec<_> = all_sources()
        .into_iter()
        .filter(|path| leaving.is_match(&code(&fs::read_to_string(path).unwrap())))
        .collect();
    assert_eq!(
        inside,
        Vec::<PathBuf>::new(),
        "the library itself never exposes a secret"
    );
}

#[test]
fn a_runtime_is_named_only_where_it_is_needed() {
    let named = Regex::new(r"\b(tokio|async_std|smol)::").unwrap();
    for path in all_sources() {
        let code = code(&fs::read_to_string(&path).unwrap());
        // The PostgreSQL driver runs on tokio, so its store may name tokio too.
        let driver = path.starts_with(root().join("store/postgres"));
        let follower = path.starts_with(root().join("keyward/follow"));
        if !follower && !driver {
            assert!(!named.is_match(&code), "{}", path.display());
        }
    }
}

/// Returns the log statements in `text` that print an error without its sources.
fn logs_without_sources(text: &str) -> Vec<String> {
    let statement = Regex::new(
        r"(?s)tracing::(?:error|warn|info|debug|trace)!\((.*?)\)(?:;|,?\n *\}| *\}|,?\n)",
    )
    .unwrap();
    let error = r"(?:error|err|fault|cause|refused|refusal|denied|failed|problem)";
    let bare = Regex::new(&format!(
        r"[%?]{error}\b|[%?]&?{error}\b|\berror = (?:%|\?)(?:[a-vx-z]|W[a-hj-z])"
    ))
    .unwrap();
    let found = statement.captures_iter(text);
    let statements = found.map(|found| found[1].to_owned());
    statements.filter(|text| bare.is_match(text)).collect()
}

/// The message of an error never repeats its source. So `{error}` prints "store is unavailable" for a full disk, a
/// missing password and a dropped schema.
#[test]
fn every_log_of_an_error_has_its_sources() {
    let mut files = all_sources();
    for folder in ["../crates", "../examples"] {
        sources(&root().join(folder), &mut files);
    }
    for path in files {
        let found = logs_without_sources(&fs::read_to_string(&path).unwrap());
        assert_eq!(found, [""; 0], "{}", path.display());
    }
}

#[test]
fn a_log_of_an_error_without_its_sources_is_found() {
    for bare in [
        "tracing::warn!(%error, \"failed\");",
        "tracing::debug!(\n    %tenant,\n    ?fault,\n    \"failed\"\n);",
        "tracing::info!(error = %refused, \"failed\");",
        "match x { _ => tracing::error!(reason = %refusal, \"failed\") }",
    ] {
        assert_eq!(logs_without_sources(bare).len(), 1, "{bare}");
    }
    let whole = "tracing::warn!(%tenant, error = %WithSources(&error), \"failed\");";
    assert_eq!(logs_without_sources(whole), [""; 0]);
}

/// Returns the messages of errors in `text` that repeat their own source.
fn repeats_its_source(text: &str) -> Vec<&str> {
    let of_thiserror =
        Regex::new(r"(?s)#\[error\((.*?)\)\]\n(.*?)(?:\n *#\[error\(|\n\}|$)").unwrap();
    let has_source = Regex::new(r"#\[(from|source)\]|\bsource:").unwrap();
    let prints_source = Regex::new(r"\{(0|source)[:}]").unwrap();
    let mut repeats = Vec::new();
    let mut rest = text;
    while let Some(found) = of_thiserror.captures(rest) {
        let (message, variant) = (found.get(1).unwrap(), found.get(2).unwrap());
        if has_source.is_match(variant.as_str()) && prints_source.is_match(message.as_str()) {
            repeats.push(message.as_str());
        }
        rest = &rest[variant.end()..];
    }
    repeats
}

#[test]
fn no_error_repeats_its_source() {
    let twice = "#[error(\"failed: {0}\")]\nStore(#[from] StoreError),\n#[error(\"b\")]\nB,\n}";
    assert_eq!(repeats_its_source(twice), ["\"failed: {0}\""]);
    let once = "#[error(\"a {0}\")]\nA(u8),\n#[error(transparent)]\nStore(#[from] StoreError),\n}";
    assert_eq!(repeats_its_source(once), [""; 0]);
    for path in all_sources() {
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(repeats_its_source(&text), [""; 0], "{}", path.display());
    }
}

/// Returns the words in the messages of errors in `text` that only a Rust programmer understands: paths, calls
/// and names with underscores. Names of settings of database servers do not count.
fn rust_in_messages(text: &str) -> Vec<String> {
    let message = Regex::new(r#"(?s)#\[error\(\s*("(?:[^"\\]|\\.)*")"#).unwrap();
    let placeholder = Regex::new(r"\{[^{}]*\}").unwrap();
    let rust = Regex::new(r"\w+::\w+|\w+\(\)|\b[a-z]+(?:_[a-z]+)+\b").unwrap();
    let settings = ["synchronous_standby_names", "max_prepared_statements"];
    let mut found = Vec::new();
    for message in message.captures_iter(text) {
        let words = placeholder.replace_all(&message[1], "");
        let names = rust.find_iter(&words).map(|name| name.as_str());
        found.extend(
            names
                .filter(|name| !settings.contains(name))
                .map(str::to_owned),
        );
    }
    found
}

#[test]
fn no_error_message_names_a_rust_item() {
    let bad = "#[error(\n    \"{} is old: call `finish_it`, {a_b} Store::open or close()\",\n    a::b()\n)]";
    assert_eq!(
        rust_in_messages(bad),
        ["finish_it", "Store::open", "close()"]
    );
    for path in workspace_sources() {
        // The errors of the HTTP layer and of a build are for the developers of a service. `keyctl` has a text
        // of its own for those that it meets.
        let place = path.to_string_lossy();
        let for_developers = ["it/house.rs", "src/web/", "keyward/build_error.rs"];
        if for_developers.iter().any(|own| place.contains(own)) {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(rust_in_messages(&text), [""; 0], "{}", path.display());
    }
}

#[test]
fn every_public_item_is_documented() {
    // The lint `missing_docs` warns in every build. CI denies warnings, so every public item has a comment.
    let manifest = fs::read_to_string(root().join("../Cargo.toml")).unwrap();
    assert!(manifest.contains("missing_docs = \"warn\""));
    for path in all_sources() {
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains("allow(missing_docs)"), "{}", path.display());
    }
}

#[test]
fn every_trap_has_a_test_or_names_what_it_waits_for() {
    let design = include_str!("../../docs/design.md");
    let listed = Regex::new(r"(?m)^(\d+)\. (.*)$").unwrap();
    let files = [
        "traps.rs",
        "nodes.rs",
        "../logs/secrets.rs",
        "http/addresses.rs",
        "authority/bound.rs",
        "authority/commit.rs",
        "authority/reach.rs",
        "first_use.rs",
        "own_commands.rs",
        "time.rs",
    ];
    let tests =
        files.map(|file| fs::read_to_string(root().join("../tests/it").join(file)).unwrap());
    let traps: Vec<_> = listed.captures_iter(design).collect();
    assert_eq!(traps.len(), 35);
    for trap in traps {
        let (number, words) = (trap[1].parse::<u8>().unwrap(), &trap[2]);
        let tested = tests
            .iter()
            .any(|file| file.contains(&format!("fn trap_{number:02}_")));
        assert_ne!(
            tested,
            words.contains("*(waits for "),
            "trap {number}: {words}"
        );
    }
}

#[test]
fn every_test_that_the_guarantees_name_exists() {
    let docs = root().join("../docs");
    let guarantees = fs::read_to_string(docs.join("guarantees.md")).unwrap();
    let named = Regex::new(r"\[`([a-z0-9_]+)`\]\(([^)]+)\)").unwrap();
    let missing: Vec<_> = named
        .captures_iter(&guarantees)
        .filter(|found| {
            let file = fs::read_to_string(docs.join(&found[2])).unwrap_or_default();
            !file.contains(&format!("fn {}(", &found[1]))
        })
        .map(|found| found[0].to_owned())
        .collect();
    assert_eq!(missing, Vec::<String>::new());
    assert!(named.find_iter(&guarantees).count() > 50);
}

#[test]
fn every_link_of_the_documents_leads_to_a_file() {
    let top = root().join("..");
    let mut pages: Vec<_> = ["README", "CONTRIBUTING", "SECURITY", "examples/README"]
        .map(|page| top.join(page).with_extension("md"))
        .into();
    let docs = fs::read_dir(top.join("docs")).unwrap();
    let docs = docs.map(|entry| entry.unwrap().path());
    pages.extend(docs.filter(|page| page.extension().is_some_and(|kind| kind == "md")));
    let link = Regex::new(r"\]\(([^)#\s]+)").unwrap();
    for page in pages {
        let text = fs::read_to_string(&page).unwrap();
        let targets = link.captures_iter(&text).map(|found| found[1].to_owned());
        let here = targets.filter(|to| !to.contains("://"));
        for target in here {
            let file = page.parent().unwrap().join(&target);
            assert!(file.exists(), "{} links to {target}", page.display());
        }
    }
}

/// Returns the Rust blocks of a page.
fn rust_blocks(page: &str) -> Vec<&str> {
    let block = Regex::new(r"(?ms)^```rust[^\n]*\n(.*?)^```$").unwrap();
    let blocks = block.captures_iter(page);
    blocks.map(|found| found.get(1).unwrap().as_str()).collect()
}

/// The tests compile and run these examples, so the blocks of the page are compiled and run too.
#[test]
fn every_block_of_a_page_of_examples_is_part_of_an_example() {
    let pages: [(&str, &[&str]); 2] = [
        (
            "stacks.md",
            &[
                "stacks/axum.rs",
                "stacks/hyper.rs",
                "grpc.rs",
                "actix/src/main.rs",
            ],
        ),
        ("first-service.md", &["first_service.rs"]),
    ];
    let read = |file: &str| fs::read_to_string(root().join("..").join(file)).unwrap();
    for (page, files) in pages {
        let page = read(&format!("docs/{page}"));
        let files: Vec<_> = files
            .iter()
            .map(|file| read(&format!("examples/{file}")))
            .collect();
        let mut shown = vec![0; files.len()];
        for block in rust_blocks(&page) {
            let file = files.iter().position(|file| file.contains(block));
            let file = file.unwrap_or_else(|| panic!("no example contains\n{block}"));
            shown[file] += 1;
        }
        assert!(shown.iter().all(|blocks| *blocks > 0), "{shown:?}");
    }
    let blocks = rust_blocks("```rust\na\n```\n\n```sh\nb\n```\n```rust,ignore\nc\n```\n");
    assert_eq!(blocks, ["a\n", "c\n"]);
}

/// Returns the Rust sources of the whole workspace.
fn workspace_sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in ["src", "crates", "tests", "examples", "benches"] {
        sources(&root().join("..").join(folder), &mut found);
    }
    found
}

/// Returns the first line of every doc comment.
fn summaries(text: &str) -> Vec<&str> {
    let mut inside = false;
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        let doc = line.strip_prefix("///").or(line.strip_prefix("//!"));
        if let Some(doc) = doc.filter(|doc| !inside && !doc.is_empty()) {
            found.push(doc.trim());
        }
        inside = doc.is_some();
    }
    found
}

/// Returns whether a summary begins with a question word, as `What is stored` does.
fn asks(summary: &str) -> bool {
    let word = summary.split(|c: char| !c.is_alphabetic()).next().unwrap();
    let questions = [
        "What", "How", "Whether", "Which", "Where", "When", "Who", "Whose", "That",
    ];
    questions.contains(&word)
}

#[test]
fn doc_comments_begin_with_what_the_item_is_or_does() {
    let texts: Vec<_> = workspace_sources()
        .iter()
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    let all: Vec<_> = texts.iter().flat_map(|text| summaries(text)).collect();
    let asking: Vec<_> = all.iter().filter(|summary| asks(summary)).collect();
    assert!(all.len() > 4000, "{}", all.len());
    assert!(asking.is_empty(), "{asking:#?}");
}

/// Returns the doc comments in `text`, each joined into one line. Skips unit tests.
fn doc_comments(text: &str) -> Vec<String> {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    let mut comments = vec![String::new()];
    for line in text.lines().map(str::trim) {
        let doc = line.strip_prefix("///").or(line.strip_prefix("//!"));
        if let Some(doc) = doc {
            let comment = comments.last_mut().unwrap();
            comment.push_str(doc.trim());
            comment.push(' ');
        } else {
            comments.push(String::new());
        }
    }
    comments.retain(|comment| !comment.is_empty());
    comments
}

/// Returns the citations in the doc comments of `text` that only this repository explains, such as `A1-15`.
fn citations(text: &str) -> Vec<String> {
    let rule = r"\b(?:A[12]|[GIY])-[0-9]{2}\b";
    let number = r"\b(?i:rule|trap|invariant|seed)s? \(?[0-9]+\b";
    let citation = Regex::new(&format!("{rule}|{number}")).unwrap();
    let cited = |doc: &String| {
        let found = citation.find_iter(doc);
        found.map(|one| one.as_str().to_owned()).collect::<Vec<_>>()
    };
    doc_comments(text).iter().flat_map(cited).collect()
}

#[test]
fn no_documentation_cites_a_rule_by_number() {
    for folder in ["src", "crates"] {
        let mut files = Vec::new();
        sources(&root().join("..").join(folder), &mut files);
        assert!(files.len() > 10, "the test found the sources of {folder}");
        for path in files {
            let found = citations(&fs::read_to_string(&path).unwrap());
            assert_eq!(found, [""; 0], "{}", path.display());
        }
    }
}

#[test]
fn a_citation_that_is_broken_over_two_lines_is_found() {
    let text = "/// Refused (rule\n    /// A2-28).\nfn a() {}\n//! Never (trap\n//! 7), see RFC 6750.\n\
                // Plain: rule G-38.\n#[cfg(test)]\nmod tests {\n/// Invariant 5.\n}";
    assert_eq!(citations(text), ["A2-28", "trap 7"]);
}

/// Splits a name into its words, in lower case: `TenantId` and `tenant_id` are `tenant` and `id`.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    for (at, letter) in name.char_indices() {
        let ends = letter == '_' || letter.is_uppercase() && at > 0;
        if ends {
            words.push(String::new());
        }
        if letter != '_' {
            words.last_mut().unwrap().extend(letter.to_lowercase());
        }
    }
    words
}

#[test]
fn no_comment_or_name_contains_tell_or_told() {
    let name = Regex::new(r"[A-Za-z_][A-Za-z0-9_]*").unwrap();
    let banned = ["tell", "tells", "told", "telling"];
    let mut found = Vec::new();
    for path in workspace_sources() {
        // Skips this file, which has to contain the banned words.
        if path.ends_with("it/house.rs") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for (number, line) in text.lines().enumerate() {
            let mut names = name.find_iter(line).map(|name| name.as_str());
            if names.any(|name| words(name).iter().any(|word| banned.contains(&&**word))) {
                found.push(format!(
                    "{}:{}: {}",
                    path.display(),
                    number + 1,
                    line.trim()
                ));
            }
        }
    }
    assert_eq!(found, Vec::<String>::new());
}

/// Returns the types that the sources in these folders declare more than once. Associated types do not count.
fn repeated_types(folders: &[&str]) -> Vec<String> {
    let declared = r"(?m)^(?:pub(?:\([a-z: ]+\))? )?(?:struct|enum|trait|union|type) (\w+)";
    let declared = Regex::new(declared).unwrap();
    let mut files = Vec::new();
    for folder in folders {
        sources(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join(folder),
            &mut files,
        );
    }
    let mut places: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        for found in declared.captures_iter(&text) {
            let name = found[1].to_owned();
            places.entry(name).or_default().push(path.clone());
        }
    }
    places.retain(|_, paths| paths.len() > 1);
    let line = |(name, paths)| format!("{name}: {paths:?}");
    places.into_iter().map(line).collect()
}

#[test]
fn a_type_name_stands_for_one_type() {
    let folders = [
        "../src",
        "../crates/keyward-conformance/src",
        "../crates/keyctl/src",
    ];
    assert_eq!(repeated_types(&folders), Vec::<String>::new());
}

/// Returns the module of a file, as a path of names below the crate root.
fn module(path: &Path) -> Vec<String> {
    let below = path.strip_prefix(root()).unwrap().with_extension("");
    let parts = below.components();
    let parts = parts.map(|part| part.as_os_str().to_str().unwrap().to_owned());
    parts
        .filter(|part| part != "mod" && part != "lib")
        .collect()
}

/// Returns the paths below `crate`, `self` and `super` that a module's code names, resolved to the crate
/// root. Expands one level of braces, the deepest level that imports here use.
fn named_paths(own: &[String], code: &str) -> Vec<Vec<String>> {
    let path = Regex::new(r"\b(crate|self|super)((?:::\w+)*)(?:::\{([^{}]*)\})?").unwrap();
    let mut found = Vec::new();
    for named in path.captures_iter(code) {
        let parts = named[2].split("::").filter(|part| !part.is_empty());
        let mut base = match &named[1] {
            "crate" => Vec::new(),
            "self" => own.to_vec(),
            _ => own[..own.len().saturating_sub(1)].to_vec(),
        };
        for part in parts {
            if part == "super" {
                base.pop();
            } else {
                base.push(part.to_owned());
            }
        }
        match named.get(3) {
            None => found.push(base),
            Some(braces) => found.extend(braces.as_str().split(',').map(|one| {
                let tail = one.split("::").map(|part| part.trim().to_owned());
                base.iter().cloned().chain(tail).collect()
            })),
        }
    }
    found
}

/// Returns the files that each file imports from. Skips each `mod.rs`: it re-exports the files next to it and
/// they use its items, so each would be a cycle.
fn imported_files() -> BTreeMap<String, BTreeSet<String>> {
    let files = all_sources();
    let leaves = files
        .iter()
        .filter(|path| !path.ends_with("mod.rs") && !path.ends_with("lib.rs"));
    let modules: BTreeMap<_, _> = leaves.map(|path| (module(path), path.clone())).collect();
    let imports = |(own, path): (&Vec<String>, &PathBuf)| {
        let code = code(&fs::read_to_string(path).unwrap());
        let owner = |named: Vec<String>| {
            let lengths = (1..=named.len()).rev();
            lengths
                .map(|length| named[..length].to_vec())
                .find(|module| modules.contains_key(module))
        };
        let paths = named_paths(own, &code).into_iter();
        let others = paths.filter_map(owner).filter(|module| module != own);
        (
            own.join("::"),
            others.map(|module| module.join("::")).collect(),
        )
    };
    modules.iter().map(imports).collect()
}

/// Returns the modules on a cycle: each one imports itself through other modules.
fn cyclic(imports: &BTreeMap<String, BTreeSet<String>>) -> BTreeSet<String> {
    let reaches_itself = |start: &&String| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![*start]);
        while let Some(module) = next.pop() {
            for other in imports.get(module).into_iter().flatten() {
                if other == *start {
                    return true;
                }
                if seen.insert(other) {
                    next.push(other);
                }
            }
        }
        false
    };
    imports.keys().filter(reaches_itself).cloned().collect()
}

#[test]
fn no_files_of_the_library_import_each_other_in_a_cycle() {
    let imports = imported_files();
    let arrows: usize = imports.values().map(BTreeSet::len).sum();
    assert!(arrows > 500, "only {arrows} imports were found");
    assert_eq!(cyclic(&imports), BTreeSet::new());
}

#[test]
fn a_cycle_of_imports_is_found() {
    let own = ["web".to_owned(), "layer".to_owned()];
    let code = "use super::service::{Service, respond};\nuse crate::core::id;";
    let named: Vec<_> = named_paths(&own, code)
        .iter()
        .map(|path| path.join("::"))
        .collect();
    let expected = ["web::service::Service", "web::service::respond", "core::id"];
    assert_eq!(named, expected);
    let arrow = |from: &str, to: &[&str]| {
        let to = to.iter().map(|to| (*to).to_owned()).collect();
        (from.to_owned(), to)
    };
    let imports = BTreeMap::from([arrow("a", &["b"]), arrow("b", &["c"]), arrow("c", &["b"])]);
    let found = BTreeSet::from(["b".to_owned(), "c".to_owned()]);
    assert_eq!(cyclic(&imports), found);
}

/// Returns the lower-case names that a crate root exports: its public modules, and the modules that it
/// re-exports in lists.
fn exported_modules(root: &str) -> BTreeSet<String> {
    let own = Regex::new(r"(?m)^pub mod (\w+)").unwrap();
    let uses = Regex::new(r"(?m)^pub use ([^;]+);").unwrap();
    let last = Regex::new(r"(\w+)\s*(?:[,}]|$)").unwrap();
    let own = own.captures_iter(root).map(|found| found[1].to_owned());
    let again = uses.captures_iter(root).flat_map(|found| {
        let names = last.captures_iter(found.get(1).unwrap().as_str());
        names.map(|name| name[1].to_owned()).collect::<Vec<_>>()
    });
    own.chain(again)
        .filter(|name| name.starts_with(char::is_lowercase))
        .collect()
}

/// Returns the names under which a manifest's direct dependencies are imported.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let rest = manifest.split("\n[dependencies]\n").nth(1).unwrap();
    let lines = rest.lines().take_while(|line| !line.starts_with('['));
    lines
        .filter_map(|line| Some(line.split_once(" = ")?.0.replace('-', "_")))
        .collect()
}

#[test]
fn no_public_module_hides_a_dependency_of_the_same_name() {
    let manifest = fs::read_to_string(root().join("../Cargo.toml")).unwrap();
    let lib = fs::read_to_string(root().join("lib.rs")).unwrap();
    let (exported, crates) = (exported_modules(&lib), dependencies(&manifest));
    for known in ["policy", "store", "web"] {
        assert!(exported.contains(known), "{exported:?}");
    }
    for known in ["http", "time", "tower_layer"] {
        assert!(crates.contains(known), "{crates:?}");
    }
    let hidden: Vec<_> = exported.intersection(&crates).collect();
    assert!(hidden.is_empty(), "{hidden:?}");
    let shadowing = exported_modules("pub mod http;\npub use crate::core::{policy, time};");
    let expected = ["http", "time"].map(str::to_owned);
    assert!(shadowing.intersection(&crates).eq(&expected));
}
