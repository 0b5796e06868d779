//! The fuzz targets. Each is a function over bytes that panics if the code under test misbehaves.
//!
//! `cargo fuzz` runs a target with inputs of its own; the unit tests run each target with all inputs of its corpus.

#![allow(clippy::unwrap_used, reason = "a target fails by a panic")]

mod http;
mod stored;
mod text;

pub use self::http::{proxies, request};
pub use self::stored::{position, record};
pub use self::text::{
    audit_line, database_url, import_line, pepper, policy, store_location, text, token,
};

/// Defines the `main` of a target's program. Without the fuzzer, the program runs the target with each file that its
/// arguments name.
#[macro_export]
macro_rules! fuzz {
    ($target:ident) => {
        #[cfg(fuzzing)]
        libfuzzer_sys::fuzz_target!(|input: &[u8]| $crate::$target(input));

        #[cfg(not(fuzzing))]
        fn main() -> std::io::Result<()> {
            for file in std::env::args_os().skip(1) {
                $crate::$target(&std::fs::read(file)?);
            }
            Ok(())
        }
    };
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    type Target = fn(&[u8]);

    const TARGETS: [(&str, Target); 12] = [
        ("audit_line", crate::audit_line),
        ("database_url", crate::database_url),
        ("import_line", crate::import_line),
        ("pepper", crate::pepper),
        ("policy", crate::policy),
        ("position", crate::position),
        ("proxies", crate::proxies),
        ("record", crate::record),
        ("request", crate::request),
        ("store_location", crate::store_location),
        ("text", crate::text),
        ("token", crate::token),
    ];

    fn names(folder: &Path) -> BTreeSet<String> {
        let entries = fs::read_dir(folder).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names
            .map(|name| name.trim_end_matches(".rs").to_owned())
            .collect()
    }

    #[test]
    fn every_target_has_a_program_and_a_corpus() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let targets: BTreeSet<_> = TARGETS.map(|(name, _)| name.to_owned()).into();
        assert_eq!(names(&root.join("targets")), targets);
        assert_eq!(names(&root.join("corpus")), targets);
    }

    #[test]
    fn no_input_of_the_corpus_fails() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
        for (name, target) in TARGETS {
            let files = fs::read_dir(corpus.join(name)).unwrap();
            let mut inputs = 0;
            for file in files {
                let file = file.unwrap().path();
                eprintln!("{}", file.display());
                target(&fs::read(&file).unwrap());
                inputs += 1;
            }
            assert!(inputs > 0, "{name} has no input");
        }
    }
}
