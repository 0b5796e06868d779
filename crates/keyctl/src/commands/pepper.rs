//! Commands on the service's peppers. They print the ids of peppers, never the secret values.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keyward::clocks::SystemClock;
use keyward::node::Replica;
use keyward::pepper::{PepperCount, PepperId, PepperState, StoredPeppers};
use keyward::store::NodeProcess;
use keyward::{PepperFile, PepperRing};
use serde_json::{Value, json};

use super::nodes;
use crate::args::{CommonArgs, LiveNodesArgs, PepperCommand};
use crate::failure::{CliError, CliErrorKind, CliResult};
use crate::output::{Output, cell};
use crate::store::{self, Expected, Store};

const HEAD: [&str; 3] = ["PEPPER", "STATE", "LIVE KEYS"];

pub(crate) async fn run(
    common: &CommonArgs,
    command: PepperCommand,
    output: &Output,
) -> CliResult<()> {
    let path = store::pepper_path(common)?;
    let mut file = PepperFile::open(&path)?;
    match command {
        PepperCommand::Show => {
            let store = store::open(common, Expected::Existing).await?;
            let counts = file.ring().count(keys_by_pepper(&store).await?);
            let file = Some(path);
            return show(&PepperUse { counts, file }, output);
        }
        PepperCommand::Prepare => {
            check_up_to_date(common, &path).await?;
            file.prepare()?;
            store_peppers(common, (&path, file.ring())).await?;
        }
        PepperCommand::Rotate(live) => {
            check_up_to_date(common, &path).await?;
            if let Some(next) = file.ring().next().filter(|_| !live.yes) {
                check_next(common, live, next.id()).await?;
            }
            file.rotate()?;
            store_peppers(common, (&path, file.ring())).await?;
        }
        PepperCommand::Retire { pepper, live } => {
            let pepper = PepperId::new(pepper)?;
            check_unneeded(common, live, &file.ring(), &pepper).await?;
            file.retire(&pepper)?;
            let next = "restart each process, and keep the file: the pepper still proves audit entries. A process that \
                        is no registered node, and was not restarted since `keyctl pepper rotate`, still creates \
                        keys with this pepper, and the others refuse them";
            return changed(&path, (&pepper, PepperState::Audit), next, output);
        }
    }
    let ring = file.ring();
    let (pepper, state, next) = match ring.next() {
        Some(pepper) => (
            pepper,
            PepperState::Next,
            "restart each process, then run `keyctl pepper rotate`",
        ),
        None => (
            ring.current(),
            PepperState::Current,
            "restart each process; keys that are used move to this pepper, and `keyctl pepper show` counts the \
             others",
        ),
    };
    changed(&path, (pepper.id(), state), next, output)
}

/// Refuses to add a pepper to a file that lacks the newest current pepper of the store. Such a file is an old copy, and
/// processes with the current file would lack the added pepper.
async fn check_up_to_date(common: &CommonArgs, path: &Path) -> CliResult<()> {
    if common.pepper_lost {
        return Ok(());
    }
    let store = store::open(common, Expected::Existing).await?;
    let Some(stored) = StoredPeppers::read(&*store.keys()).await? else {
        return Ok(());
    };
    // Reads the file after the store, because another command may change both.
    let ring = PepperFile::open(path)?.ring();
    let lacks = |pepper: &&PepperId| ring.state(pepper).is_none();
    let newest = stored.newest().filter(lacks);
    let newest = newest.map(|pepper| (pepper, "which processes of the store create keys with"));
    let prepared = || stored.prepared().find(lacks);
    let prepared = || Some((prepared()?, "which was prepared for the store"));
    let Some((pepper, is)) = newest.or_else(prepared) else {
        return Ok(());
    };
    let message = format!(
        "{} lacks pepper {pepper}, {is}, so it was left as it is: put back the current pepper file of {}, or state \
         with --pepper-lost that it is lost",
        path.display(),
        common.store
    );
    Err(CliError::new(CliErrorKind::Refused, message))
}

/// Stores the ids of the file's peppers, so that a later command refuses an old copy of the file. Fails if the store
/// did not take them, or if another copy of the file got a pepper at the same time.
async fn store_peppers(common: &CommonArgs, (path, ring): (&Path, PepperRing)) -> CliResult<()> {
    let store = store::open(common, Expected::Existing).await;
    let stored = match store {
        Ok(store) => StoredPeppers::add(&*store.keys(), &ring, common.pepper_lost)
            .await
            .map_err(CliError::from),
        Err(error) => Err(error),
    };
    let path = path.display();
    let message = match stored {
        Err(error) => format!(
            "{path} is changed, but the store does not know its new pepper, and so no command refuses an old copy of \
             the file; the next process that starts with the file stores the pepper: {}",
            error.message
        ),
        Ok(stored) => {
            let prepared = stored.iter().flat_map(StoredPeppers::prepared);
            let mut lacked = prepared.filter(|pepper| ring.state(pepper).is_none());
            match lacked.next() {
                None => return Ok(()),
                Some(pepper) => format!(
                    "{path} is changed, but pepper {pepper}, which it lacks, was prepared at the same time in a copy of \
                     the file: keep one of the two files, and prepare with it and --pepper-lost"
                ),
            }
        }
    };
    Err(CliError::new(CliErrorKind::InPart, message))
}

fn changed(
    file: &Path,
    (pepper, state): (&PepperId, PepperState),
    next: &str,
    output: &Output,
) -> CliResult<()> {
    let message = format!("pepper {pepper} of {} is {state}: {next}", file.display());
    let document = json!({
        "pepper": pepper, "state": state, "pepper_file": file, "next_step": next,
    });
    output.done(&message, &document)
}

/// Prints the peppers of the file, and the peppers that keys need and the file lacks.
fn show(used: &PepperUse, output: &Output) -> CliResult<()> {
    if output.json {
        let mut documents = used.documents();
        return documents.try_for_each(|count| output.document(&count));
    }
    let row = |count: &PepperCount| {
        let PepperCount { pepper, keys, .. } = count;
        vec![
            pepper.to_string(),
            used.state(count).to_owned(),
            keys.to_string(),
        ]
    };
    output.table(&HEAD, &used.counts.iter().map(row).collect::<Vec<_>>())
}

/// The next step for a live node that lacks a pepper of the file.
const RESTART: &str =
    "restart their processes with this pepper file, or wait until they have lapsed; to go on now";

/// The reason against a node that reports no peppers.
const UNKNOWN: &str = "its peppers are unknown";

/// Refuses to rotate to a pepper that a live node lacks.
async fn check_next(common: &CommonArgs, live: LiveNodesArgs, next: &PepperId) -> CliResult<()> {
    let store = store::open(common, Expected::Existing).await?;
    let step = format!("which would refuse keys under pepper {next}: {RESTART}");
    nodes::refuse_live(&store, common, live, &step, |report| {
        match &report.process {
            None => Some(UNKNOWN.to_owned()),
            Some(process) => lacks(process, next),
        }
    })
    .await
}

fn lacks(process: &NodeProcess, pepper: &PepperId) -> Option<String> {
    (!process.peppers.contains(pepper)).then(|| format!("lacks pepper {pepper}"))
}

/// Refuses to retire a pepper that live keys need, or that a live node creates keys with. Also refuses while a live
/// node lacks a pepper that remains.
async fn check_unneeded(
    common: &CommonArgs,
    live: LiveNodesArgs,
    ring: &PepperRing,
    pepper: &PepperId,
) -> CliResult<()> {
    let store = store::open(common, Expected::Existing).await?;
    let keys = keys_by_pepper(&store).await?.remove(pepper).unwrap_or(0);
    let state = ring.state(pepper);
    if keys > 0 {
        let revoke =
            format!("`keyctl revoke-many --tenant <TENANT> --pepper {pepper} --reason unused`");
        let step = match state {
            None => {
                format!("put back the pepper file that has it, or revoke these keys with {revoke}")
            }
            Some(state) if state.verifies() => format!(
                "after a rotation, keys that are used move to the new pepper by themselves; revoke the others with \
                 {revoke}"
            ),
            Some(_) => format!(
                "these keys are refused: change its state in the file to live and restart each process, or revoke \
                 them with {revoke}"
            ),
        };
        let message = format!(
            "{} pepper {pepper}, whose state is {}: {step}",
            need(keys),
            cell(state)
        );
        return Err(CliError::new(CliErrorKind::Refused, message));
    }
    // `PepperFile::retire` has an error for a pepper of another state.
    if state != Some(PepperState::Live) {
        return Ok(());
    }
    let counts = ring.count(BTreeMap::new()).into_iter();
    let verifying = counts.filter(|count| count.state.is_some_and(PepperState::verifies));
    let remaining: Vec<_> = verifying.map(|count| count.pepper).collect();
    let remaining = remaining.iter().filter(|remains| *remains != pepper);
    let step = format!("which need a restart before pepper {pepper} is retired: {RESTART}");
    nodes::refuse_live(&store, common, live, &step, |report| {
        let Some(process) = &report.process else {
            return Some(UNKNOWN.to_owned());
        };
        match process.pepper == *pepper {
            true => Some(format!("creates keys with pepper {pepper}")),
            false => remaining
                .clone()
                .find_map(|remains| lacks(process, remains)),
        }
    })
    .await
}

/// Counts the live keys of the store under each pepper.
pub(super) async fn keys_by_pepper(store: &Store) -> CliResult<BTreeMap<PepperId, u64>> {
    let replica = Arc::new(Replica::new(store.keys(), Arc::new(SystemClock)));
    replica.sync().await?;
    Ok(replica.keys_by_pepper())
}

/// The live keys of a store under each pepper, compared with the pepper file if there is one.
pub(super) struct PepperUse {
    pub(super) counts: Vec<PepperCount>,
    /// The pepper file. `None` if this machine has none, for example if it only reaches the database.
    pub(super) file: Option<PathBuf>,
}

impl PepperUse {
    /// Compares the counts with the pepper file. Only a file that `--pepper-file` names must exist.
    pub(super) fn compare(
        common: &CommonArgs,
        keys: BTreeMap<PepperId, u64>,
        output: &Output,
    ) -> CliResult<Self> {
        let opened = store::pepper_path(common).and_then(|path| {
            let ring = PepperFile::open(&path)?.ring();
            Ok((ring, path))
        });
        match opened {
            Ok((ring, path)) => Ok(Self {
                counts: ring.count(keys),
                file: Some(path),
            }),
            Err(error) if common.pepper_file.is_some() => Err(error),
            Err(error) => {
                output.note(&format!(
                    "peppers are counted, not compared: {}",
                    error.message
                ));
                let counts = PepperCount::without_ring(keys);
                Ok(Self { counts, file: None })
            }
        }
    }

    /// Returns each count as a JSON document.
    pub(super) fn documents(&self) -> impl Iterator<Item = Value> {
        let document = |count: &PepperCount| json!({"pepper": count.pepper, "state": self.state(count), "keys": count.keys});
        self.counts.iter().map(document)
    }

    /// Returns each count with a description of its pepper.
    pub(super) fn described(&self) -> impl Iterator<Item = (String, u64)> {
        let described = |count: &PepperCount| {
            let state = self.state(count);
            format!("live keys of pepper {} ({state})", count.pepper)
        };
        self.counts
            .iter()
            .map(move |count| (described(count), count.keys))
    }

    /// Returns a sentence for each pepper that live keys need and the pepper file lacks.
    pub(super) fn problems(&self) -> Vec<String> {
        let Some(file) = &self.file else {
            return Vec::new();
        };
        let unverifiable = self.counts.iter().filter(|count| count.is_unverifiable());
        unverifiable.map(|count| problem(count, file)).collect()
    }

    fn state(&self, count: &PepperCount) -> &'static str {
        match (count.state, &self.file) {
            (Some(state), _) => state.as_str(),
            (None, Some(_)) => "missing",
            (None, None) => "unknown",
        }
    }
}

fn problem(count: &PepperCount, file: &Path) -> String {
    let pepper = &count.pepper;
    let (lack, step) = match count.state {
        Some(_) => (
            "has for audit entries only",
            "change its state in the file from audit to live",
        ),
        None => ("does not have", "put back the pepper file that has it"),
    };
    format!(
        "{} pepper {pepper}, which {} {lack}, so each is refused: {step} and restart each process, or revoke these \
         keys with `keyctl revoke-many --tenant <TENANT> --pepper {pepper} --reason unused`",
        need(count.keys),
        file.display()
    )
}

fn need(keys: u64) -> String {
    match keys {
        1 => "1 live key needs".to_owned(),
        keys => format!("{keys} live keys need"),
    }
}
