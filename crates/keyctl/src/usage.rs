//! Messages about a command line that cannot be parsed.
//!
//! No message repeats an argument: people paste secrets into the wrong place. Messages are built from the
//! argument definitions alone.

use std::error::Error as _;
use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::Error;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::failure::{CliError, CliErrorKind};
use crate::output::{Output, warn};

/// Reports the mistake, or shows the help that was requested.
pub(crate) fn refuse(error: &Error) -> ExitCode {
    let help = ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    if !error.use_stderr() || error.kind() == help {
        return show(error);
    }
    let failure = CliError::usage(message(error));
    let json = std::env::args_os().any(|argument| argument == "--json");
    let output = Output::new(json, false);
    output.failure(&failure);
    if !output.json {
        warn(&detail(error, ContextKind::Usage).unwrap_or_default());
        warn("\nFor more information, try '--help'.");
    }
    failure.exit_code()
}

/// Shows the help or the version. A reader may close it early, as `head` does.
fn show(error: &Error) -> ExitCode {
    match error.print().and_then(|()| io::stdout().flush()) {
        Err(cause) if cause.kind() != io::ErrorKind::BrokenPipe => {
            let failure = CliError::new(CliErrorKind::InPart, format!("cannot print: {cause}"));
            Output::new(false, true).failure(&failure);
            failure.exit_code()
        }
        _ => u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from),
    }
}

fn message(error: &Error) -> String {
    let of = |kind| detail(error, kind);
    // For error kinds that name an argument by its definition. Other kinds contain the text that was typed.
    let argument = || of(ContextKind::InvalidArg).unwrap_or_else(|| "an argument".to_owned());
    match error.kind() {
        ErrorKind::UnknownArgument => match position(error) {
            Some(at) => format!("argument {at} is not expected here"),
            None => "an argument is not expected here".to_owned(),
        },
        ErrorKind::InvalidSubcommand => "there is no such command".to_owned(),
        ErrorKind::MissingSubcommand => "name a command".to_owned(),
        ErrorKind::MissingRequiredArgument => format!("missing: {}", argument()),
        ErrorKind::ArgumentConflict => match of(ContextKind::PriorArg) {
            Some(prior) => format!("{} cannot be used with {prior}", argument()),
            None => format!("{} cannot be used here", argument()),
        },
        ErrorKind::InvalidValue => match of(ContextKind::ValidValue) {
            Some(valid) => format!("{} must be one of: {valid}", argument()),
            None => format!("{} needs a value", argument()),
        },
        ErrorKind::ValueValidation => match error.source() {
            // The value parsers of keyctl never repeat their input.
            Some(source) => format!("{}: {source}", argument()),
            None => format!("{}: malformed value", argument()),
        },
        ErrorKind::TooManyValues => format!("{} takes no such value", argument()),
        ErrorKind::InvalidUtf8 => "arguments must be UTF-8".to_owned(),
        _ => "these arguments do not go together".to_owned(),
    }
}

/// Returns the position of the unexpected argument, counted from 1.
fn position(error: &Error) -> Option<usize> {
    let typed = detail(error, ContextKind::InvalidArg)?;
    let is = |text: &str| {
        let rest = text.strip_prefix(&typed);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
    };
    let arguments: Vec<_> = std::env::args_os().collect();
    arguments
        .iter()
        .rposition(|text| text.to_str().is_some_and(is))
}

fn detail(error: &Error, kind: ContextKind) -> Option<String> {
    match error.get(kind)? {
        ContextValue::String(text) => Some(text.clone()),
        ContextValue::Strings(texts) if !texts.is_empty() => Some(texts.join(", ")),
        ContextValue::StyledStr(text) => Some(text.to_string()),
        _ => None,
    }
}
