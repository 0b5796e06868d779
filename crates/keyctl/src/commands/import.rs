//! Import of existing keys as digests, one JSON object per line.
//!
//! No message about a refused line repeats any part of the line, which may contain a misplaced secret.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::io::{self, IsTerminal, Write};
use std::task::Poll;

use keyward::command::{CommandId, ImportKey};
use keyward::key::{Digest, Fingerprint, Hint, Metadata};
use keyward::{CommandError, CreateKey, Denial, KeyId, TenantId};
use serde::Deserialize;
use serde_json::json;

use crate::args::ImportArgs;
use crate::desk::CliContext;
use crate::failure::{CliError, CliErrorKind, CliResult};
use crate::lines::Lines;
use crate::output::{Output, warn};
use crate::words::counted;

/// 64 lines are imported concurrently. Concurrent imports into one tenant share a commit.
const TOGETHER: usize = 64;

/// 64 KiB, the longest line. All fields at their maximum length fit.
const LINE_MAX: u64 = 64 * 1024;

/// 3 refused lines are printed for each reason. The others are counted.
const SHOWN: u64 = 3;

/// 20 reasons are counted one by one, because every line may have its own.
const REASONS: usize = 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    sha256: String,
    name: String,
    tenant: Option<String>,
    class: Option<String>,
    environment: Option<String>,
    #[serde(default)]
    scopes: Vec<String>,
    description: Option<String>,
    purpose: Option<String>,
    owner: Option<String>,
    owner_role: Option<String>,
    #[serde(default)]
    addresses: Vec<String>,
    #[serde(default)]
    metadata: Metadata,
    hint: Option<String>,
    expires_at: Option<String>,
    #[serde(default)]
    never_expires: bool,
}

enum Done {
    Imported {
        key: KeyId,
        /// True if the key may do anything that needs a scope.
        useful: bool,
    },
    /// An earlier run imported the line, as the key with this id.
    Repeated(KeyId),
}

#[derive(Default)]
struct ImportCounts {
    imported: u64,
    repeated: u64,
    refused: u64,
    /// Imported keys that may do nothing.
    useless: u64,
    reasons: Reasons,
}

/// The reasons of refused lines, each as its message without digits, with the number of lines and the first message.
#[derive(Default)]
struct Reasons {
    lines: BTreeMap<String, (u64, String)>,
    /// The number of lines with further reasons.
    others: u64,
}

impl Reasons {
    /// Counts a refused line, and prints it if few lines had its reason before.
    fn add(&mut self, number: u64, message: &str) {
        let reason = message.replace(|c: char| c.is_ascii_digit(), "");
        if self.lines.len() == REASONS && !self.lines.contains_key(&reason) {
            self.others += 1;
            return;
        }
        let (count, _) = (self.lines.entry(reason)).or_insert_with(|| (0, message.to_owned()));
        *count += 1;
        if *count <= SHOWN {
            warn(&format!("line {number}: {message}"));
        }
    }

    /// Prints the number of lines that were not printed, for each reason.
    fn summarize(&self) {
        for (count, message) in self.lines.values().filter(|(count, _)| *count > SHOWN) {
            let more = counted(count - SHOWN, "more line");
            warn(&format!("{more}: {message}"));
        }
        if self.others > 0 {
            let others = counted(self.others, "line");
            warn(&format!("{others} with other reasons, which --json prints"));
        }
    }
}

pub(crate) async fn run(context: &CliContext, args: &ImportArgs, output: &Output) -> CliResult<()> {
    let mut lines = open(args)?;
    let mut counts = ImportCounts::default();
    let mut number = 0;
    loop {
        let mut batch = Vec::new();
        while batch.len() < TOGETHER {
            let line = lines.next();
            let line = line.map_err(|error| ended(error, number + 1, &counts))?;
            let Some(line) = line else { break };
            number += 1;
            if !line.trim_ascii().is_empty() {
                batch.push((number, line));
            }
        }
        if batch.is_empty() {
            break;
        }
        let numbers: Vec<_> = batch.iter().map(|(number, _)| *number).collect();
        let named = args.command_id.as_deref();
        let lines = batch.iter();
        let done = all(lines.map(|(number, line)| import(context, named, *number, line))).await;
        // The lines of a batch are imported concurrently, so later lines than a failed one count too.
        let mut first = None;
        for (number, done) in numbers.into_iter().zip(done) {
            if let Err(error) = report(number, done, &mut counts, output) {
                first = first.or(Some((number, error)));
            }
        }
        if let Some((number, error)) = first {
            return Err(ended(error, number, &counts));
        }
        progress(&counts, output);
    }
    finish(&counts, output)
}

fn open(args: &ImportArgs) -> CliResult<Lines> {
    match &args.file {
        Some(path) => Lines::of_file(path, LINE_MAX),
        None => Ok(Lines::of_stdin(LINE_MAX)),
    }
}

/// Checks one line of an import without a store: its JSON, and each field by itself.
///
/// # Errors
///
/// The message that `keyctl import` prints for the line. It repeats no part of the line.
pub fn check_import_line(line: &[u8]) -> Result<(), String> {
    let parsed = ImportLine::parse(line).map_err(|error| error.message)?;
    let key = ImportKey::sha256(parsed.digest, parsed.key);
    key.check()
        .map_err(|invalid| CliError::from(invalid).message)
}

/// A parsed line.
struct ImportLine {
    tenant: Option<TenantId>,
    digest: Digest,
    hint: Option<Hint>,
    key: CreateKey,
}

impl ImportLine {
    fn parse(line: &[u8]) -> CliResult<Self> {
        let line: Line = serde_json::from_slice(line).map_err(|error| {
            let column = error.column();
            let expected = "an object with the fields that `keyctl import --help` lists";
            CliError::usage(format!("must be {expected}; at fault near column {column}"))
        })?;
        Ok(Self {
            tenant: line.tenant.as_deref().map(TenantId::new).transpose()?,
            digest: line.sha256.parse()?,
            hint: line.hint.as_deref().map(Hint::new).transpose()?,
            key: draft(line)?,
        })
    }
}

async fn import(
    context: &CliContext,
    named: Option<&str>,
    number: u64,
    line: &[u8],
) -> CliResult<Done> {
    let ImportLine {
        tenant,
        digest,
        hint,
        key,
    } = ImportLine::parse(line)?;
    let tenant = match tenant {
        Some(tenant) => tenant,
        None => context.named_tenant()?,
    };
    // By default, derives the command id from the digest, so that an interrupted import can be repeated.
    let id = match named {
        Some(named) => format!("{named}-{number}"),
        None => format!("import-{}", Fingerprint::of_sha256(&digest)),
    };
    let actor = context.actor(&tenant)?;
    let by = actor.with_command_id(CommandId::new(id)?);
    let mut key = ImportKey::sha256(digest, key.in_tenant(tenant));
    if let Some(hint) = hint {
        key = key.hint(hint);
    }
    match context.keys.import(by, key).await {
        Ok(imported) => Ok(Done::Imported {
            key: imported.id,
            useful: !imported.reach.is_empty(),
        }),
        Err(CommandError::Denied(Denial::AlreadyCreated { id })) => Ok(Done::Repeated(id)),
        Err(error) => Err(error.into()),
    }
}

fn draft(line: Line) -> CliResult<CreateKey> {
    let mut key = CreateKey::new(line.name)
        .scopes(line.scopes.iter().map(String::as_str))
        .allow_addresses(line.addresses.iter().map(String::as_str))
        .metadata(line.metadata.iter());
    if let Some(class) = line.class {
        key = key.class(class);
    }
    if let Some(environment) = line.environment {
        key = key.environment(environment);
    }
    if let Some(description) = line.description {
        key = key.description(description);
    }
    if let Some(purpose) = line.purpose {
        key = key.purpose(purpose);
    }
    key = match (line.owner, line.owner_role) {
        (Some(owner), Some(role)) => key.owned_by(owner.try_into()?, role.try_into()?),
        // Without an owner in the line, the tenant owns the key: the operator who imports it does not use it.
        (None, None) => key.owned_by_tenant(),
        _ => return Err(CliError::usage("owner and owner_role go together")),
    };
    match (line.expires_at, line.never_expires) {
        (Some(end), false) => Ok(key.expires_at(end.parse()?)),
        (None, true) => Ok(key.never_expires()),
        (None, false) => Ok(key),
        _ => Err(CliError::usage(
            "expires_at and never_expires exclude each other",
        )),
    }
}

/// Reports one line's outcome. Fails, which ends the import, if the store is unavailable, denied or corrupt.
fn report(
    number: u64,
    done: CliResult<Done>,
    counts: &mut ImportCounts,
    output: &Output,
) -> CliResult<()> {
    let (key, repeated) = match done {
        Ok(Done::Imported { key, useful }) => {
            counts.imported += 1;
            counts.useless += u64::from(!useful);
            (key, false)
        }
        Ok(Done::Repeated(key)) => {
            counts.repeated += 1;
            (key, true)
        }
        Err(
            failure @ CliError {
                kind: CliErrorKind::Unavailable | CliErrorKind::Corrupt | CliErrorKind::NoAccess,
                ..
            },
        ) => {
            return Err(failure);
        }
        Err(failure) => {
            counts.refused += 1;
            if output.json {
                let CliError { code, message, .. } = &failure;
                let document = json!({ "line": number, "code": code, "error": message });
                return output.document(&document);
            }
            counts.reasons.add(number, &failure.message);
            return Ok(());
        }
    };
    match output.json {
        true => {
            let document = json!({ "line": number, "key": key, "repeated": repeated });
            output.document(&document)
        }
        false => Ok(()),
    }
}

/// Adds to a failure that ends the import how far it came.
fn ended(failure: CliError, number: u64, counts: &ImportCounts) -> CliError {
    let imported = counted(counts.imported, "key");
    let how_far =
        format!("ended at line {number}, with {imported} imported; repeat the import to go on");
    match counts.imported {
        0 => failure.about(how_far),
        _ => failure.after(how_far),
    }
}

fn progress(counts: &ImportCounts, output: &Output) {
    let mut err = io::stderr().lock();
    if !output.json && err.is_terminal() {
        let ImportCounts {
            imported,
            repeated,
            refused,
            ..
        } = counts;
        let message = format!("{imported} imported, {repeated} were here, {refused} refused");
        let _ = write!(err, "\r{message}").and_then(|()| err.flush());
    }
}

fn finish(counts: &ImportCounts, output: &Output) -> CliResult<()> {
    let ImportCounts {
        imported,
        repeated,
        refused,
        useless,
        reasons,
    } = counts;
    if !output.json {
        if io::stderr().is_terminal() {
            warn("");
        }
        reasons.summarize();
        let sum = format!("{imported} imported, {repeated} were here, {refused} refused");
        output.line(&sum).map_err(|failure| failure.about(sum))?;
    }
    if *useless > 0 {
        output.warning(&format!(
            "{useless} of the imported keys may do nothing: their lines had no \"scopes\" that their \
             owners' roles allow; the service can update the keys"
        ));
    }
    if *refused == 0 {
        return Ok(());
    }
    let (lines, keys) = (counted(refused, "line"), counted(imported, "key"));
    let message = format!("refused {lines}, and imported {keys}");
    let error = CliError::new(CliErrorKind::Refused, message);
    match imported {
        0 => Err(error),
        _ => Err(error.in_part()),
    }
}

/// Runs futures concurrently, and returns their outputs in order.
async fn all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut running: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    poll_fn(move |context| {
        let mut waiting = false;
        for (future, done) in running.iter_mut().filter(|(_, done)| done.is_none()) {
            match future.as_mut().poll(context) {
                Poll::Ready(answer) => *done = Some(answer),
                Poll::Pending => waiting = true,
            }
        }
        if waiting {
            return Poll::Pending;
        }
        Poll::Ready(running.drain(..).filter_map(|(_, done)| done).collect())
    })
    .await
}
